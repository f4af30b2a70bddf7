// Hard numbers of reductions, products, windows, losses and the rest: hard_numbers.h says what is
// promised. The sum of 100,000,000 numbers is in sum.cpp, attention's in flash_attention.cpp.
#include "hard_numbers.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using Floats = std::vector<float>;

// f of inputs of any shape: values, then the gradient of each for the cotangent dy.
struct Hard {
  std::vector<std::pair<Floats, Shape>> inputs;
  std::vector<Expected> y;
  std::vector<std::vector<Expected>> gradients = {};  // may be fewer than inputs
  Floats dy = {};                                     // ones when it is empty
};

void check_hard(const std::string& name, const Function& f, const Hard& hard,
                Closeness close = {digits, 1e-7}) {
  Tensors ys;
  poison_memory(true);
  for (const Device device : devices()) {
    Tensors in;
    for (const auto& [numbers, shape] : hard.inputs)
      in.push_back(leaf(tensor<float>(numbers, shape, device)));
    const Tensor y = f(in);
    y.backward(hard.dy.empty() ? ones_like(y) : tensor<float>(hard.dy, y.shape(), device));
    check_expected(y, hard.y, name, close);
    for (size_t i = 0; i < hard.gradients.size(); ++i)
      check_expected(in[i].grad(), hard.gradients[i], name + ": gradient", close);
    ys.push_back(y);
  }
  poison_memory(false);
  check_same_nans(ys, name);
}

Tensor labels(const std::vector<std::int32_t>& t, Device device) {
  return tensor<std::int32_t>(t, {std::int64_t(t.size())}, device);
}

Function loss(std::int32_t target, CrossEntropyOptions options = {}) {
  return [=](const Tensors& in) {
    return cross_entropy(in[0], labels({target}, in[0].device()), options);
  };
}

}  // namespace

TEST_CASE("hard numbers: sums, means and maxima") {
  const auto all = [](auto f) { return [f](const Tensors& in) { return f(in[0], {}); }; };
  check_hard("mean", all(mean),
             {{{{3e38f, 3e38f, 3e38f, 3e38f}, {4}}}, {inf}, {{.25, .25, .25, .25}}});
  check_hard("max", all(max), {{{{1, 3, 3}, {3}}}, {3}, {{0, 1, 0}}}, {0, 0});
  check_hard("max", all(max), {{{{1, qnanf, 3}, {3}}}, {qnan}, {{0, 1, 0}}}, {0, 0});
  check_hard("max", all(max), {{{{-inff, -inff}, {2}}}, {-inf}, {{1, 0}}}, {0, 0});
  check_hard("sum", all(sum), {{{{inff, -inff, 1}, {3}}}, {qnan}, {{1, 1, 1}}});
  for (const Device device : devices()) {
    const Tensor nothing = zeros({3, 0}, {.device = device});
    check_expected(sum(nothing, {.dim = {1}}), {0, 0, 0}, "sum of nothing");
    check_expected(mean(nothing, {.dim = {1}}), {qnan, qnan, qnan}, "mean of nothing");
    check_expected(l2_norm(nothing, {.dim = {1}}), {0, 0, 0}, "l2_norm of nothing");
    check_error(Kind::value, {"max: empty axis 1"}, [&] { max(nothing, {.dim = {1}}); });
  }
}

TEST_CASE("hard numbers: products of vectors") {
  const auto dot = [](const Tensors& in) { return inner_product(in[0], in[1]); };
  // 1e60 − 1e60: 0, or inf − inf where products are f32.
  check_hard("dot", dot,
             {{{{1e30f, 1e30f}, {2}}, {{1e30f, -1e30f}, {2}}},
              {or_nan(0)},
              {{double(1e30f), -double(1e30f)}, {double(1e30f), double(1e30f)}}});
  check_hard("dot", dot, {{{{inff, 0}, {2}}, {{0, 1}, {2}}}, {qnan}, {{0, 1}, {inf, 0}}});
  check_hard("dot", dot, {{{{}, {0}}, {{}, {0}}}, {0}, {{}, {}}});
  const auto outer = [](const Tensors& in) { return outer_product(in[0], in[1]); };
  check_hard("outer", outer,
             {{{{inff, 1}, {2}}, {{0, 2}, {2}}}, {qnan, inf, 0, 2}, {{2, 2}, {inf, inf}}});
  check_hard("outer", outer, {{{{}, {0}}, {{1, 2, 3}, {3}}}, {}, {{}, {0, 0, 0}}});
}

// 1e8 + 1 is 1e8 in f32: the exact 1, or the 0 of a plain loop.
TEST_CASE("hard numbers: matrix products") {
  const auto product = [](const Tensors& in) { return matmul(in[0], in[1]); };
  check_hard("matmul", product,
             {{{{inff, 1}, {1, 2}}, {{0, 1}, {2, 1}}}, {qnan}, {{0, 1}, {inf, 1}}});
  check_hard("matmul", product, {{{{}, {2, 0}}, {{}, {0, 3}}}, {0, 0, 0, 0, 0, 0}, {{}, {}}});
  check_hard("matmul", product, {{{{}, {0, 2}}, {{1, 2, 3, 4}, {2, 2}}}, {}, {{}, {0, 0, 0, 0}}});
  check_hard("matmul", product, {{{{1, 2, 3, 4}, {2, 2}}, {{}, {2, 0}}}, {}, {{0, 0, 0, 0}, {}}});
  const auto affine = [](const Tensors& in) { return linear(in[0], in[1], in[2]); };
  check_hard(
      "linear", affine,
      {{{{}, {2, 0}}, {{}, {3, 0}}, {{1, 2, 3}, {3}}}, {1, 2, 3, 1, 2, 3}, {{}, {}, {2, 2, 2}}});
  check_hard("linear", affine,
             {{{{}, {0, 2}}, {{1, 2}, {1, 2}}, {{3}, {1}}}, {}, {{}, {0, 0}, {0}}});
  for (const Device device : devices()) {
    const double y =
        matmul(tensor<float>({1e8f, 1, -1e8f}, {1, 3}, device), ones({3, 1}, {.device = device}))
            .item();
    CHECK((y == 0 || y == 1));
  }
}

TEST_CASE("hard numbers: convolutions at the edges of what there is") {
  const auto conv = [](Conv2dOptions o) {
    return [o](const Tensors& in) { return conv2d(in[0], in[1], in[2], o); };
  };
  const std::pair<Floats, Shape> nine = {{1, 2, 3, 4, 5, 6, 7, 8, 9}, {1, 1, 3, 3}},
                                 bias = {{10}, {1}};
  check_hard("no images", conv({}),
             {{{{}, {0, 1, 3, 3}}, nine, bias}, {}, {{}, {0, 0, 0, 0, 0, 0, 0, 0, 0}, {0}}});
  check_hard("one pixel", conv({.padding = 1}),
             {{{{2}, {1, 1, 1, 1}}, nine, bias}, {20}, {{5}, {0, 0, 0, 0, 2, 0, 0, 0, 0}, {1}}});
  const std::vector<Expected> numbers(nine.first.begin(), nine.first.end());
  check_hard("kernel = image", conv({}), {{nine, nine, bias}, {295}, {numbers, numbers, {1}}});
  check_hard("groups = channels", conv({.groups = 2}),
             {{{{1, 2}, {1, 2, 1, 1}}, {{3, 5}, {2, 1, 1, 1}}, {{0, 1}, {2}}},
              {3, 11},
              {{3, 5}, {1, 2}, {1, 1}}});
  check_hard("stride > kernel", conv({.stride = 2}),
             {{nine, {{2}, {1, 1, 1, 1}}, bias},
              {12, 16, 24, 28},
              {{2, 0, 2, 0, 0, 0, 2, 0, 2}, {20}, {4}}});
  check_hard("dilation", conv({.dilation = 2}),
             {{nine, {{1, 2, 3, 4}, {1, 1, 2, 2}}, bias},
              {10 + 1 + 6 + 21 + 36},
              {{1, 0, 2, 0, 0, 0, 3, 0, 4}, {1, 3, 7, 9}, {1}}});
}

TEST_CASE("hard numbers: max pooling, whose padding is no number") {
  const auto pool = [](MaxPool2dOptions o) {
    return [o](const Tensors& in) { return max_pool2d(in[0], 2, o); };
  };
  const Shape four{1, 1, 2, 2};
  check_hard("NaN", pool({}), {{{{1, qnanf, 3, 2}, four}}, {qnan}, {{0, 1, 0, 0}}}, {0, 0});
  check_hard("-inf", pool({}), {{{{-inff, -inff, -inff, -inff}, four}}, {-inf}, {{1, 0, 0, 0}}},
             {0, 0});
  check_hard("tie", pool({}), {{{{1, 2, 2, 2}, four}}, {2}, {{0, 1, 0, 0}}}, {0, 0});
  check_hard("padding", pool({.padding = 1}), {{{{-5}, {1, 1, 1, 1}}}, {-5}, {{1}}}, {0, 0});
  const auto line = [](const Tensors& in) { return max_pool1d(in[0], 2, {.padding = 1}); };
  check_hard("padding of 1-D", line, {{{{-5, -7, qnanf}, {1, 1, 3}}}, {-5, qnan}, {{1, 0, 1}}},
             {0, 0});
}

TEST_CASE("hard numbers: average pooling, with padding counted and not") {
  const auto pool = [](AvgPool2dOptions o) {
    return [o](const Tensors& in) { return avg_pool2d(in[0], 2, o); };
  };
  const std::pair<Floats, Shape> one = {{-5}, {1, 1, 1, 1}};
  check_hard("counted", pool({.padding = 1}), {{one}, {-1.25}, {{.25}}});
  check_hard("not counted", pool({.padding = 1, .count_include_pad = false}), {{one}, {-5}, {{1}}});
  // ONNX test_averagepool_2d_ceil_last_window_starts_on_pad: that window is left out.
  check_hard("last window on padding",
             [](const Tensors& in) {
               return avg_pool2d(
                   in[0], 3,
                   {.stride = 3, .padding = 1, .ceil_mode = true, .count_include_pad = true});
             },
             {{{{1, 2, 3, 4}, {1, 1, 2, 2}}}, {10 / 9.}, {{1 / 9., 1 / 9., 1 / 9., 1 / 9.}}});
}

TEST_CASE("hard numbers: cross_entropy") {
  check_hard("far", loss(1), {{{{1e4f, -1e4f}, {1, 2}}}, {20000}, {{1, -1}}});
  check_hard("far", loss(0), {{{{1e4f, -1e4f}, {1, 2}}}, {0}, {{0, 0}}});
  check_hard("-inf", loss(0), {{{{-inff, 0}, {1, 2}}}, {inf}, {{-1, 1}}});
  check_hard("-inf", loss(1), {{{{-inff, 0}, {1, 2}}}, {0}, {{0, 0}}});
  check_hard("inf", loss(0), {{{{inff, 0}, {1, 2}}}, {qnan}, {{qnan, qnan}}});
  check_hard("ignored", loss(7, {.ignore_index = 7}), {{{{1, 2}, {1, 2}}}, {qnan}, {{0, 0}}});
  check_hard("smoothing", loss(0, {.label_smoothing = .1}),
             {{{{1, 2, 3}, {1, 3}}}, {2.307605964}, {{-.843302760, .211395138, .631907622}}});
  for (const auto& [reduction, expected] :
       {std::pair{Reduction::mean, qnan}, {Reduction::sum, 0.0}})
    check_hard("no rows",
               [reduction = reduction](const Tensors& in) {
                 return cross_entropy(in[0], labels({}, in[0].device()), {.reduction = reduction});
               },
               {{{{}, {0, 3}}}, {expected}, {{}}});
}

TEST_CASE("hard numbers: mse_loss that overflows") {
  check_hard("mse_loss", [](const Tensors& in) { return mse_loss(in[0], in[1]); },
             {{{{1e20f}, {1}}, {{0}, {1}}}, {inf}, {{2e20}, {-2e20}}});
}

TEST_CASE("hard numbers: dropout of nothing and of everything") {
  const auto drop = [](double p) {
    return [p](const Tensors& in) { return dropout(in[0], {.p = p, .seed = 1}); };
  };
  const std::pair<Floats, Shape> x = {{1, inff, -inff, qnanf}, {4}};
  check_hard("p = 0", drop(0), {{x}, {1, inf, -inf, qnan}, {{1, 2, 3, 4}}, {1, 2, 3, 4}}, {0, 0});
  check_hard("p = 1", drop(1), {{x}, {0, 0, 0, 0}, {{0, 0, 0, 0}}, {1, 2, 3, 4}}, {0, 0});
}

TEST_CASE("hard numbers: embedding counts a row as often as it is used") {
  check_hard("embedding",
             [](const Tensors& in) {
               return embedding(labels({0, 0, 2}, in[0].device()), in[0]);
             },
             {{{{1, 2, 3, 4, 5, 6}, {3, 2}}},
              {1, 2, 1, 2, 5, 6},
              {{4, 6, 0, 0, 5, 6}},
              {1, 2, 3, 4, 5, 6}},
             {0, 0});
}
