// What must be refused, and how: the kind, and in one line the op, what is wrong, what came and
// what was expected. After each refusal the next good call works, on the same device.
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr std::int64_t large = std::int64_t{1} << 31;

// A device, and small tensors there.
struct On {
  TensorOptions options;

  template <class... Extents>
  Tensor zeros(Extents... extents) const {
    return ebb::zeros({extents...}, options);
  }
  template <class... Extents>
  Tensor ones(Extents... extents) const {
    return ebb::ones({extents...}, options);
  }
  template <class... Numbers>
  Tensor whole(Numbers... numbers) const {
    return tensor<std::int32_t>({numbers...}, {sizeof...(numbers)}, options.device);
  }

  template <class Call>
  void refuse(Kind kind, const std::vector<std::string>& parts, const Call& call) const {
    check_error(kind, parts, [&] {
      if constexpr (std::is_invocable_v<Call, const On&>) {
        call(*this);
      } else {
        call();
      }
    });
    const std::vector<double> sum = values(ones(2) + ones(2));
    CHECK_MESSAGE((sum == std::vector<double>{2, 2}), "after ", parts.front());
  }
};

void on_each_device(const std::function<void(const On&)>& f) {
  for (const Device device : devices()) f({{.device = device}});
}

}  // namespace

TEST_CASE("refusals: shapes") {
  on_each_device([&](const On& on) {
    on.refuse(Kind::limit, {"element count overflows"}, [&] { on.zeros(large, 4 * large); });
    on.refuse(Kind::limit, {"size overflows"}, [&] { empty({large * large}, on.options); });
    on.refuse(Kind::oom, {"4398046511104 bytes wanted"}, [&] { empty({large * 512}, on.options); });
    on.refuse(Kind::shape, {"negative dimension 0"}, [&] { on.zeros(-1, 3); });
    on.refuse(Kind::shape, {"rank 9", "at most 8"}, [&] { on.zeros(1, 1, 1, 1, 1, 1, 1, 1, 1); });
    on.refuse(Kind::shape, {"5 values", "[2,3]"}, [&] {
      tensor<float>({1, 2, 3, 4, 5}, {2, 3}, on.options.device);
    });
    on.refuse(Kind::shape, {"reshape: 12 elements", "[4,2]"}, [&] {
      reshape(on.zeros(12), {4, 2});
    });
    on.refuse(Kind::value, {"reshape: only one"}, [&] { reshape(on.zeros(12), {-1, -1}); });
    on.refuse(Kind::value, {"reshape: -1 is ambiguous"}, [&] { reshape(on.zeros(0), {0, -1}); });
    on.refuse(Kind::value, {"permute: ", "axis 1 repeated"}, [&] {
      permute(on.zeros(2, 3), {1, 1});
    });
    on.refuse(Kind::value, {"permute: "}, [&] { permute(on.zeros(2, 3), {1}); });
    on.refuse(Kind::index, {"transpose: ", "[-3, 2]"}, [&] { transpose(on.zeros(2, 3, 4), 0, 5); });
    on.refuse(Kind::index, {"transpose: ", "-4", "[-3, 2]"},
              [&] { transpose(on.zeros(2, 3, 4), -4, 0); });
    on.refuse(Kind::shape, {"add: ", "axis -1", "[2,3] and [4]"},
              [&] { add(on.zeros(2, 3), on.zeros(4)); });
    on.refuse(Kind::dtype, {"add: ", "f32 and i32"},
              [&] { add(on.zeros(2), on.zeros(2).to(Dtype::i32)); });
    on.refuse(Kind::shape, {"item: ", "2 elements"}, [&] { on.zeros(2).item(); });
    on.refuse(Kind::value, {"concat: "}, [&] { concat({}); });
    on.refuse(Kind::shape, {"concat: "}, [&] { concat({on.zeros(2), on.zeros(2, 1)}); });
    on.refuse(Kind::shape, {"concat: "}, [&] { concat({on.zeros(2, 3), on.zeros(2, 4)}); });
    on.refuse(Kind::shape, {"concat: "}, [&] { concat({on.zeros(), on.zeros()}); });
    on.refuse(Kind::shape, {"slice: "}, [&] { slice(on.zeros(), 0, 0); });
  });
}

TEST_CASE("refusals: devices") {
  check_error(Kind::device, {"cuda:7"}, [] { parse_device("cuda:7"); });
  check_error(Kind::device, {"cuda:7"}, [] { zeros({2}, {.device = {Device::Type::cuda, 7}}); });
  if (!has_cuda) check_error(Kind::device, {"no CUDA kernels"}, [] { parse_device("cuda"); });
  if (gpu_missing()) return;
  const TensorOptions there{.device = cuda_device};
  const On here{};
  const auto mixed = [&](const char* op, const std::function<void()>& f) {
    check_error(Kind::device, {std::string(op) + ": ", "cpu", "cuda:0"}, f);
  };
  mixed("add", [&] { add(zeros({2}), zeros({2}, there)); });
  mixed("matmul", [&] { matmul(zeros({2, 2}), zeros({2, 2}, there)); });
  mixed("conv2d", [&] { conv2d(zeros({1, 1, 2, 2}), zeros({1, 1, 1, 1}, there)); });
  mixed("layer_norm", [&] { layer_norm(zeros({2, 2}, there), zeros({2})); });
  mixed("embedding", [&] { embedding(here.whole(0), zeros({2, 2}, there)); });
  mixed("cross_entropy", [&] { cross_entropy(zeros({1, 2}, there), here.whole(0)); });
  mixed("concat", [&] { concat({zeros({2}), zeros({2}, there)}); });
  mixed("backward", [&] { leaf(ones({2})).backward(ones({2}, there)); });
}

TEST_CASE("refusals: gradients") {
  const auto x = [](const On& on) { return leaf(on.ones(2)); };
  on_each_device([&](const On& on) {
    on.refuse(Kind::state, {"shape [2] needs a gradient"}, [&] { (x(on) * 2.0).backward(); });
    on.refuse(Kind::shape, {"[3]", "[2]"}, [&] { (x(on) * 2.0).backward(on.ones(3)); });
    on.refuse(Kind::dtype, {"f64", "f32"},
              [&] { (x(on) * 2.0).backward(on.ones(2).to(Dtype::f64)); });
    on.refuse(Kind::state, {"already freed"}, [&] {
      const Tensor y = sum(x(on) * x(on));
      y.backward();
      y.backward();
    });
    on.refuse(Kind::state, {"no input requires a gradient"}, [&] { sum(on.ones(2)).backward(); });
    on.refuse(Kind::dtype, {"i32", "require"}, [&] { leaf(on.zeros(2).to(Dtype::i32)); });
    on.refuse(Kind::state, {"fill_", "a leaf"}, [&] { x(on).fill_(3); });
    on.refuse(Kind::state, {"mul: ", "changed in place", "version 2", "version 1"}, [&] {
      const Tensor a = x(on);
      Tensor b = on.ones(2);
      const Tensor y = sum(mul(a, b));
      b.fill_(3);
      y.backward();
    });
    on.refuse(Kind::state, {"mul: ", "changed in place"}, [&] {
      const Tensor a = x(on), b = on.ones(2);
      const Tensor y = sum(mul(a, b));
      reshape(b, {1, 2}).fill_(3);  // through a view
      y.backward();
    });
    on.refuse(Kind::state, {"second-order"},
              [&] { backward(sum(x(on)), {}, {.create_graph = true}); });
  });
}

TEST_CASE("refusals: rows and labels that are not there") {
  const auto table = [](const On& on) { return on.ones(3, 2); };
  const auto logits = [](const On& on) { return on.ones(2, 2); };
  on_each_device([&](const On& on) {
    on.refuse(Kind::index, {"embedding: index 3 not in [0,3), position 0"},
              [&] { embedding(on.whole(3, 0), table(on)); });
    on.refuse(Kind::index, {"embedding: index -1 not in [0,3), position 1"},
              [&] { embedding(on.whole(0, -1), table(on)); });
    on.refuse(Kind::index, {"embedding: index -2147483648"},
              [&] { embedding(on.whole(INT32_MIN), table(on)); });
    on.refuse(Kind::shape, {"embedding: weight must be 2-D"},
              [&] { embedding(on.whole(0), on.zeros()); });
    on.refuse(Kind::shape, {"embedding: weight must be 2-D"},
              [&] { embedding(on.whole(0), on.zeros(2, 2, 2)); });
    on.refuse(Kind::dtype, {"embedding: indices must be"},
              [&] { embedding(on.zeros(1), table(on)); });
    on.refuse(Kind::index, {"cross_entropy: target 2 not in [0,2), row 0"},
              [&] { cross_entropy(logits(on), on.whole(2, 0)); });
    on.refuse(Kind::index, {"cross_entropy: target -1 not in [0,2), row 1"},
              [&] { cross_entropy(logits(on), on.whole(0, -1)); });
    on.refuse(Kind::value, {"cross_entropy: label_smoothing"},
              [&] { cross_entropy(logits(on), on.whole(0, 1), {.label_smoothing = 1}); });
    on.refuse(Kind::value, {"cross_entropy: label_smoothing"},
              [&] { cross_entropy(logits(on), on.whole(0, 1), {.label_smoothing = NAN}); });
    on.refuse(Kind::shape, {"cross_entropy: weight"},
              [&] { cross_entropy(logits(on), on.whole(0, 1), on.ones(3)); });
    on.refuse(Kind::value, {"cross_entropy: unknown reduction", "abc"},
              [&] { parse_reduction("cross_entropy", "abc"); });
    on.refuse(Kind::shape, {"mse_loss: ", "[3]", "[2,3]"},
              [&] { mse_loss(on.zeros(2, 3), on.zeros(3)); });
  });
}

TEST_CASE("refusals: products") {
  on_each_device([&](const On& on) {
    on.refuse(Kind::shape, {"matmul: ", "3 and 4"},
              [&] { matmul(on.zeros(2, 3), on.zeros(4, 5)); });
    on.refuse(Kind::shape, {"matmul: "}, [&] { matmul(on.zeros(), on.zeros(2, 2)); });
    on.refuse(Kind::shape, {"matmul: ", "batch"},
              [&] { matmul(on.zeros(2, 2, 2), on.zeros(3, 2, 2)); });
    on.refuse(Kind::shape, {"linear: ", "[4]"},
              [&] { linear(on.zeros(1, 2), on.zeros(3, 2), on.zeros(4)); });
    on.refuse(Kind::shape, {"inner_product: "}, [&] { inner_product(on.zeros(3), on.zeros(4)); });
    on.refuse(Kind::shape, {"inner_product: "},
              [&] { inner_product(on.zeros(2, 2), on.zeros(2, 2)); });
    on.refuse(Kind::shape, {"outer_product: "},
              [&] { outer_product(on.zeros(2, 2), on.zeros(2)); });
    on.refuse(Kind::shape, {"swiglu: ", "[3]", "[2]"}, [&] { swiglu(on.zeros(2), on.zeros(3)); });
  });
}

TEST_CASE("refusals: convolutions") {
  const auto run = [](const Shape& x, const Shape& w, Conv2dOptions o) {
    return [=](const On& on) { conv2d(zeros(x, on.options), zeros(w, on.options), {}, o); };
  };
  const Shape x{1, 4, 5, 5}, w{2, 4, 3, 3};
  on_each_device([&](const On& on) {
    on.refuse(Kind::shape, {"conv2d: ", "input 4", "weight expects 2"}, run(x, {2, 2, 3, 3}, {}));
    on.refuse(Kind::value, {"conv2d: groups"}, run(x, w, {.groups = 0}));
    on.refuse(Kind::value, {"conv2d: groups"}, run(x, w, {.groups = 3}));
    on.refuse(Kind::value, {"conv2d: stride"}, run(x, w, {.stride = 0}));
    on.refuse(Kind::value, {"conv2d: stride"}, run(x, w, {.stride = -1}));
    on.refuse(Kind::value, {"conv2d: dilation"}, run(x, w, {.dilation = 0}));
    on.refuse(Kind::value, {"conv2d: padding"}, run(x, w, {.padding = -1}));
    on.refuse(Kind::value, {"conv2d: stride"}, run(x, w, {.stride = {1, 0}}));
    on.refuse(Kind::value, {"conv2d: dilation"}, run(x, w, {.dilation = {0, 1}}));
    on.refuse(Kind::value, {"conv2d: padding"}, run(x, w, {.padding = {0, -1}}));
    on.refuse(Kind::shape, {"conv2d: ", "larger"}, run(x, {2, 4, 6, 3}, {}));
    on.refuse(Kind::shape, {"conv2d: x must be"}, run({5, 5}, w, {}));
    on.refuse(Kind::shape, {"conv2d: x must be"}, run({1, 1, 4, 5, 5}, w, {}));
    on.refuse(Kind::shape, {"conv2d: "}, run(x, {2, 4, 0, 3}, {}));
    on.refuse(Kind::limit, {"conv2d: "}, run(x, w, {.padding = large - 1}));
    on.refuse(Kind::shape, {"conv1d: ", "larger"},
              [&] { conv1d(on.zeros(1, 1, 3), on.zeros(1, 1, 5)); });
  });
}

TEST_CASE("refusals: windows") {
  const auto max_of = [](const Shape& x, Pair kernel, MaxPool2dOptions o) {
    return [=](const On& on) { max_pool2d(zeros(x, on.options), kernel, o); };
  };
  const auto average = [](const Shape& x, Pair kernel, AvgPool2dOptions o) {
    return [=](const On& on) { avg_pool2d(zeros(x, on.options), kernel, o); };
  };
  const auto line = [](const Shape& x, std::int64_t kernel, MaxPool1dOptions o) {
    return [=](const On& on) { max_pool1d(zeros(x, on.options), kernel, o); };
  };
  const Shape x{1, 1, 6, 6};
  on_each_device([&](const On& on) {
    on.refuse(Kind::value, {"max_pool2d: padding [2,2] is more than half"},
              max_of(x, 3, {.padding = 2}));
    on.refuse(Kind::value, {"max_pool2d: padding [0,2]"}, max_of(x, 3, {.padding = {0, 2}}));
    on.refuse(Kind::value, {"max_pool2d: padding [2,0]"}, max_of(x, 3, {.padding = {2, 0}}));
    on.refuse(Kind::value, {"max_pool2d: padding"}, max_of(x, 3, {.padding = -1}));
    on.refuse(Kind::value, {"max_pool2d: kernel"}, max_of(x, 0, {}));
    on.refuse(Kind::value, {"max_pool2d: stride"}, max_of(x, 3, {.stride = Pair(0)}));
    on.refuse(Kind::shape, {"max_pool2d: "}, max_of({1, 0, 6, 6}, 3, {}));
    on.refuse(Kind::shape, {"max_pool2d: "}, max_of({1, 1, 6, 0}, 3, {}));
    on.refuse(Kind::value, {"avg_pool2d: padding"}, average(x, 3, {.padding = -1}));
    on.refuse(Kind::value, {"avg_pool2d: kernel"}, average(x, 0, {}));
    on.refuse(Kind::value, {"avg_pool2d: stride"}, average(x, 3, {.stride = Pair(0)}));
    on.refuse(Kind::shape, {"avg_pool2d: "}, average({1, 0, 6, 6}, 3, {}));
    on.refuse(Kind::value, {"avg_pool2d: divisor_override"},
              average(x, 3, {.divisor_override = 0}));
    on.refuse(Kind::value, {"max_pool1d: padding 2 is more than half"},
              line({1, 1, 6}, 3, {.padding = 2}));
    on.refuse(Kind::shape, {"max_pool1d: "}, line({6}, 3, {}));
    on.refuse(Kind::shape, {"max_pool1d: "}, line({1, 1, 1, 6}, 3, {}));
  });
  for (const Device device : devices()) {  // no images are no fault
    CHECK(max_pool2d(zeros({0, 1, 6, 6}, {.device = device}), 3).shape() == Shape{0, 1, 2, 2});
    CHECK(avg_pool2d(zeros({0, 1, 6, 6}, {.device = device}), 3).shape() == Shape{0, 1, 2, 2});
  }
}

TEST_CASE("refusals: norms and softmax") {
  const auto batch = [](const Shape& x, double var, std::int64_t channels, BatchNormOptions o) {
    return [=](const On& on) {
      batch_norm(zeros(x, on.options), on.zeros(channels), full({channels}, var, on.options), {},
                 {}, o);
    };
  };
  const Shape x{4, 2};
  on_each_device([&](const On& on) {
    on.refuse(Kind::shape, {"layer_norm: normalized_shape"},
              [&] { layer_norm(on.zeros(2, 3), {}, {}, {.normalized_shape = {2}}); });
    on.refuse(Kind::shape, {"layer_norm: weight"},
              [&] { layer_norm(on.zeros(2, 3), on.zeros(2)); });
    on.refuse(Kind::value, {"layer_norm: eps"},
              [&] { layer_norm(on.zeros(2, 3), {}, {}, {.eps = -1}); });
    on.refuse(Kind::value, {"layer_norm: eps"},
              [&] { layer_norm(on.zeros(2, 3), {}, {}, {.eps = NAN}); });
    on.refuse(Kind::value, {"rms_norm: eps"}, [&] { rms_norm(on.zeros(2, 3), {}, {.eps = NAN}); });
    on.refuse(Kind::value, {"batch_norm: more than 1 value"},
              batch({1, 2}, 1, 2, {.training = true}));
    on.refuse(Kind::shape, {"batch_norm: running_"}, batch(x, 1, 3, {}));
    on.refuse(Kind::value, {"batch_norm: eps"}, batch(x, 1, 2, {.eps = -1}));
    on.refuse(Kind::value, {"batch_norm: eps"}, batch(x, 1, 2, {.eps = NAN}));
    on.refuse(Kind::value, {"batch_norm: momentum"},
              batch(x, 1, 2, {.training = true, .momentum = 1.5}));
    on.refuse(Kind::value, {"batch_norm: momentum"},
              batch(x, 1, 2, {.training = true, .momentum = NAN}));
    on.refuse(Kind::index, {"softmax: dimension out of range"},
              [&] { softmax(on.zeros(2, 3), {2}); });
    on.refuse(Kind::dtype, {"softmax: x must be floating"},
              [&] { softmax(on.zeros(2).to(Dtype::i32)); });
    on.refuse(Kind::value, {"max: empty axis 1"}, [&] { max(on.zeros(2, 0), {.dim = {1}}); });
    on.refuse(Kind::value, {"l2_normalize: eps"},
              [&] { l2_normalize(on.zeros(2, 3), {.eps = 0}); });
    on.refuse(Kind::value, {"l2_normalize: eps"},
              [&] { l2_normalize(on.zeros(2, 3), {.eps = -1}); });
  });
  // Looking at a variance on the GPU would wait for it: there the channel is NaN.
  check_error(Kind::value, {"batch_norm: running_var is negative", "channel 0"},
              [&] { batch(x, -1, 2, {})(On{}); });
}

TEST_CASE("refusals: probabilities and images") {
  const auto drop = [](double p) {
    return [p](const On& on) { dropout(on.zeros(2), {.p = p, .seed = 1}); };
  };
  const auto gray = [](const Shape& x, GrayscaleOptions o) {
    return [=](const On& on) { rgb_to_grayscale(zeros(x, on.options), o); };
  };
  const auto invert = [](double max) {
    return [=](const On& on) { invert_colors(on.zeros(2), {.max = max}); };
  };
  on_each_device([&](const On& on) {
    on.refuse(Kind::value, {"dropout: "}, drop(-.1));
    on.refuse(Kind::value, {"dropout: "}, drop(1.1));
    on.refuse(Kind::value, {"dropout: "}, drop(NAN));
    on.refuse(Kind::shape, {"rgb_to_grayscale: x must have 3 channels"}, gray({1, 1, 4, 4}, {}));
    on.refuse(Kind::shape, {"rgb_to_grayscale: x must have 3 channels"}, gray({1, 2, 4, 4}, {}));
    on.refuse(Kind::shape, {"rgb_to_grayscale: x must have 3 channels"}, gray({4, 4, 4}, {}));
    on.refuse(Kind::value, {"rgb_to_grayscale: weights"},
              gray({3, 4, 4}, {.weights = {NAN, 0, 0}}));
    on.refuse(Kind::dtype, {"invert_colors: ", "i32"},
              [&] { invert_colors(on.zeros(2).to(Dtype::i32)); });
    on.refuse(Kind::value, {"invert_colors: bad max"}, invert(0));
    on.refuse(Kind::value, {"invert_colors: bad max"}, invert(-1));
    on.refuse(Kind::value, {"invert_colors: bad max"}, invert(NAN));
    on.refuse(Kind::value, {"gelu: "}, [&] { gelu(on.zeros(2), {.approximate = "exact"}); });
  });
}
