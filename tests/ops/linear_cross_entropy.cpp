#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor labels(const std::vector<std::int32_t>& t, Device device = cpu_device) {
  return tensor<std::int32_t>(t, {std::int64_t(t.size())}, device);
}

// t[r] = 7 r + 3 mod classes, every fifth one ignored.
Tensor some_labels(std::int64_t n, std::int64_t classes) {
  std::vector<std::int32_t> t;
  for (std::int64_t r = 0; r < n; ++r)
    t.push_back(r % 5 == 4 ? -100 : std::int32_t((7 * r + 3) % classes));
  return labels(t);
}

Function f(LinearCrossEntropyOptions options) {
  return [=](const Tensors& in) { return linear_cross_entropy(in[0], in[1], in[2], options); };
}

// The same from other operations.
Function composed(LinearCrossEntropyOptions o) {
  return [=](const Tensors& in) {
    return cross_entropy(linear(in[0], in[1]), in[2],
                         {.reduction = o.reduction, .ignore_index = o.ignore_index});
  };
}

Tensors arguments(std::int64_t n, std::int64_t width, std::int64_t classes, std::uint64_t seed) {
  const double scale = 2 / std::sqrt(static_cast<double>(std::max<std::int64_t>(width, 1)));
  return {randn({n, width}, seed), randn({classes, width}, seed + 1, Dtype::f64, cpu_device, scale),
          some_labels(n, classes)};
}

// Value and gradients for the upstream gradient dy.
std::vector<std::vector<double>> answers(const Function& g, const Tensors& in, Dtype dtype,
                                         Device device, double dy = 1) {
  const Tensor x = leaf(in[0].to(Dtype::bf16).to(dtype).to(device).clone());
  const Tensor w = leaf(in[1].to(Dtype::bf16).to(dtype).to(device).clone());
  const Tensor y = g({x, w, in[2].to(device)});
  y.backward(full({}, dy, y.options()));
  return {values(y), values(x.grad()), values(w.grad())};
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

constexpr std::int64_t logits[] = {1, 40, 1000, 1 << 28};  // at a time: a row, some, all

}  // namespace

TEST_CASE("linear_cross_entropy: literal values") {
  for (const Device device : devices()) {
    const TensorOptions there{Dtype::f32, device};
    const Tensor x = leaf(tensor<float>({1, 2}, {2, 1}, device));
    const Tensor w = leaf(tensor<float>({0, 1}, {2, 1}, device));
    const Tensor y = linear_cross_entropy(x, w, labels({0, 1}, device));
    check_close(y, tensor<double>({(1.3132616875 + 0.1269280110) / 2}, {}), pointwise, "loss");
    y.backward(full({}, 2, there));
    check_close(x.grad(), tensor<double>({0.7310585786, -0.1192029220}, {2, 1}), pointwise_gradient,
                "dx");
    check_close(w.grad(), tensor<double>({-0.4926527346, 0.4926527346}, {2, 1}), pointwise_gradient,
                "dw");
  }
}

TEST_CASE("linear_cross_entropy: gradients agree with finite differences") {
  for (const std::int64_t at_a_time : logits)
    for (const Reduction reduction : {Reduction::mean, Reduction::sum})
      check_gradients(f({.reduction = reduction, .logits_at_a_time = at_a_time}),
                      arguments(7, 3, 4, 1));
}

TEST_CASE("linear_cross_entropy: twins agree at ragged and 1 sizes, and in parts") {
  const std::int64_t sizes[][3] = {{1, 1, 1}, {7, 3, 2}, {64, 5, 300}, {9, 16, 5000}};
  for (const auto& [n, width, classes] : sizes)
    for (const std::int64_t at_a_time : logits)
      check_twins(f({.logits_at_a_time = at_a_time}), arguments(n, width, classes, 10),
                  two_products);
}

// In parts dw is added up part by part, so only its last digits may differ.
TEST_CASE("linear_cross_entropy: it is cross_entropy of linear, whatever the parts and dy") {
  for (const Device device : devices())
    for (const Reduction reduction : {Reduction::mean, Reduction::sum})
      for (const std::int64_t at_a_time : logits) {
        const Tensors in = arguments(23, 6, 17, 20);
        const LinearCrossEntropyOptions o{.reduction = reduction, .logits_at_a_time = at_a_time};
        const auto whole = answers(composed(o), in, Dtype::f64, device, -3);
        const auto parts = answers(f(o), in, Dtype::f64, device, -3);
        for (size_t i = 0; i < whole.size(); ++i) CHECK(distance(parts[i], whole[i]) <= 1e-14);
      }
}

TEST_CASE("linear_cross_entropy: in bf16 it errs no more than what it is made of") {
  for (const Device device : devices())
    for (const auto& [n, width, classes] :
         {std::tuple{256, 64, 512}, {65, 40, 129}, {40, 8, 50304}})
      for (const std::int64_t at_a_time : {std::int64_t{16 * 512}, std::int64_t{1} << 28}) {
        const Tensors in = arguments(n, width, classes, 30);
        const LinearCrossEntropyOptions o{.logits_at_a_time = at_a_time};
        const auto reference = answers(composed(o), in, Dtype::f64, cpu_device);
        const auto made = answers(composed(o), in, Dtype::bf16, device);
        const auto own = answers(f(o), in, Dtype::bf16, device);
        for (size_t i = 0; i < own.size(); ++i) {
          INFO("answer ", i, " of ", n, " rows, ", classes, " classes");
          CHECK(distance(own[i], reference[i]) <= 1.25 * distance(made[i], reference[i]) + 0x1p-10);
        }
      }
}

TEST_CASE("linear_cross_entropy: backward twice gives the same twice, and the inputs stay") {
  for (const std::int64_t logits : {std::int64_t{12}, std::int64_t{1} << 28})
    for (const Device device : devices()) {
      const Tensors in = arguments(9, 4, 6, 40);
      const Tensor x = leaf(in[0].to(device).clone()), w = leaf(in[1].to(device).clone());
      const Tensor y = linear_cross_entropy(x, w, in[2].to(device), {.logits_at_a_time = logits});
      y.backward({}, true);
      const auto dx = values(x.grad()), dw = values(w.grad());
      Tensor own_x = x, own_w = w;
      own_x.zero_grad(), own_w.zero_grad();
      y.backward();
      CHECK(values(x.grad()) == dx);
      CHECK(values(w.grad()) == dw);
      CHECK(values(x) == values(in[0]));
      CHECK(values(w) == values(in[1]));
    }
}

TEST_CASE("linear_cross_entropy: only what requires a gradient gets one") {
  for (const Device device : devices())
    for (const bool of_x : {false, true}) {
      const Tensors in = arguments(5, 3, 4, 50);
      const Tensor x = in[0].to(device).clone().set_requires_grad(of_x);
      const Tensor w = in[1].to(device).clone().set_requires_grad(!of_x);
      linear_cross_entropy(x, w, in[2].to(device)).backward();
      CHECK(x.grad().defined() == of_x);
      CHECK(w.grad().defined() == !of_x);
    }
}

TEST_CASE("linear_cross_entropy: ignored rows, no rows, and targets that are no class") {
  for (const Device device : devices()) {
    const Tensor x = leaf(randn({2, 3}, 60, Dtype::f32).to(device));
    const Tensor w = leaf(randn({4, 3}, 61, Dtype::f32).to(device));
    const Tensor none = linear_cross_entropy(x, w, labels({-1, -1}, device), {.ignore_index = -1});
    CHECK(std::isnan(none.item()));
    none.backward();
    check_close(x.grad(), zeros({2, 3}), exact, "dx of ignored rows");
    check_close(w.grad(), zeros({4, 3}), exact, "dw of ignored rows");
    const Tensor empty_loss =
        linear_cross_entropy(leaf(zeros({0, 3}, x.options())), w, zeros({0}, {Dtype::i32, device}));
    CHECK(std::isnan(empty_loss.item()));
    Tensor own_w = w;
    own_w.zero_grad();
    empty_loss.backward();
    check_close(w.grad(), zeros({4, 3}), exact, "dw of no rows");
    own_w.zero_grad();
    const Tensor bad = linear_cross_entropy(x, w, labels({0, 4}, device), {.check_targets = false});
    CHECK(std::isnan(bad.item()));
    bad.backward();
    const std::vector<double> dx = values(x.grad());
    CHECK(std::isfinite(dx[0]));
    CHECK(std::isnan(dx[3]));
  }
}

TEST_CASE("linear_cross_entropy: it holds no more logits than it may") {
  for (const Device device : devices()) {
    const Tensors in = arguments(256, 8, 1000, 70);
    const Tensor x = leaf(in[0].to(Dtype::f32).to(device)),
                 w = leaf(in[1].to(Dtype::f32).to(device));
    const Tensor t = in[2].to(device);
    const auto memory = [&](std::int64_t at_a_time) {
      reset_peak(device);
      const std::int64_t before = memory_stats(device).live;
      linear_cross_entropy(x, w, t, {.logits_at_a_time = at_a_time});
      return memory_stats(device).peak - before;
    };
    CHECK(memory(1 << 28) >= 256 * 1000 * 4);
    CHECK(memory(16 * 1024) <= 256 * 1000 * 4 / 4);
  }
}

TEST_CASE("linear_cross_entropy: arguments that do not fit are refused") {
  const Tensor x = zeros({2, 3}), w = zeros({4, 3}), t = labels({0, 1});
  const auto refuse = [](Kind kind, const char* part, const Tensor& x, const Tensor& w,
                         const Tensor& t, const LinearCrossEntropyOptions& o = {}) {
    check_error(kind, {"linear_cross_entropy: ", part}, [&] { linear_cross_entropy(x, w, t, o); });
  };
  refuse(Kind::shape, "x must be [N,D]", zeros({3}), w, t);
  refuse(Kind::shape, "w must be [C,D]", x, zeros({4, 2}), t);
  refuse(Kind::shape, "target has the wrong shape", x, w, labels({0}));
  refuse(Kind::dtype, "target must hold class numbers", x, w, zeros({2}));
  refuse(Kind::dtype, "x and w differ in dtype", x, zeros({4, 3}, {Dtype::f64}), t);
  refuse(Kind::index, "target 4 not in [0,4), row 1", x, w, labels({0, 4}));
  refuse(Kind::value, "no loss of each row", x, w, t, {.reduction = Reduction::none});
  refuse(Kind::value, "bad logits_at_a_time", x, w, t, {.logits_at_a_time = 0});
}
