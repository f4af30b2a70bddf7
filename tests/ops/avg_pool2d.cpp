#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Function with(Pair kernel, AvgPool2dOptions o) {
  return [=](const Tensors& in) { return avg_pool2d(in[0], kernel, o); };
}

struct Case {
  Shape shape;
  Pair kernel;
  AvgPool2dOptions options;
};
const Case cases[] = {
    {{2, 2, 4, 8}, 2, {}},
    {{1, 3, 4, 6}, 2, {.divisor_override = 3}},
    {{1, 3, 5, 6}, 2, {}},
    {{1, 1, 5, 7}, 2, {.ceil_mode = true}},
    {{2, 1, 7, 8}, 3, {.stride = 2, .padding = 1, .ceil_mode = true}},
    {{2, 1, 7, 8}, 3, {.stride = 2, .padding = 1, .count_include_pad = false}},
    {{1, 2, 6, 9}, {3, 2}, {.stride = Pair(1, 3), .padding = Pair(1, 0)}},
    {{3, 6, 6}, 2, {.stride = 3, .divisor_override = -2}},
    {{1, 1, 1, 1}, 1, {}},
};

}  // namespace

TEST_CASE("avg_pool2d: literal values, padding counted or not, windows beyond the padding") {
  for (const Device device : devices()) {
    const Tensor x = full({1, 1, 2, 2}, -5, {Dtype::f32, device});
    CHECK(avg_pool2d(x, 2).item() == -5);
    const auto corner = [&](bool counted) {
      return values(avg_pool2d(x, 2, {.padding = 1, .count_include_pad = counted}))[0];
    };
    CHECK(corner(true) == -1.25);
    CHECK(corner(false) == -5);
    // 3 columns in windows of 2: the last has one column, and what lies beyond is not counted.
    const Tensor row = tensor<float>({1, 3, 8}, {1, 1, 1, 3}, device);
    CHECK(values(avg_pool2d(row, {1, 2}, {.ceil_mode = true})) == std::vector<double>{2, 8});
  }
}

TEST_CASE("avg_pool2d: a ceil_mode window that would start in the padding is left out") {
  for (const Device device : devices()) {
    const TensorOptions there{Dtype::f32, device};
    const Tensor y =
        avg_pool2d(ones({1, 1, 2, 2}, there), 3, {.stride = 3, .padding = 1, .ceil_mode = true});
    CHECK(y.shape() == Shape{1, 1, 1, 1});
    check_close(y, full({1, 1, 1, 1}, 4.0 / 9), one_rounding, "y");
  }
}

TEST_CASE("avg_pool2d: gradients agree with finite differences") {
  for (const auto& [shape, kernel, options] : cases)
    check_gradients(with(kernel, options), {randn(shape, 1)});
}

TEST_CASE("avg_pool2d: twins agree") {
  const Tolerance sums{1e-6, 1e-6};  // of at most 9 numbers of size 1
  for (const auto& [shape, kernel, options] : cases)
    check_twins(with(kernel, options), {randn(shape, 2)}, {sums, sums});
  check_twins(with(2, {}), {randn({3, 5, 24, 24}, 3)}, {sums, sums});
  check_twins(with(2, {}), {randn({0, 3, 4, 4}, 4)}, {sums, sums});
}

namespace {

void check_means(const Shape& shape, Pair kernel, const AvgPool2dOptions& options) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    // Of one sign: sums keep the accuracy of their terms.
    const Tensor values = randn(shape, 5).to(dtype).to(Dtype::f64);
    const Tensor wide = leaf(mul(values, values).to(dtype).to(Dtype::f64));
    const Tensor reference = avg_pool2d(wide, kernel, options);
    const Tensor dy = full(reference.shape(), 0.75, {Dtype::f64, cpu_device});
    reference.backward(dy);
    const Tolerance rounding{0, dtype == Dtype::bf16 ? 0.004 : 1e-6};
    for (const Device device : devices()) {
      const Tensor x = leaf(wide.detach().to(dtype).to(device));
      const Tensor y = avg_pool2d(x, kernel, options);
      check_close(y, reference, rounding, "value");
      y.backward(dy.to(dtype).to(device));
      check_close(x.grad(), wide.grad(), rounding, "gradient");
    }
  }
}

}  // namespace

TEST_CASE("avg_pool2d: agrees on all devices in f32 and bf16, whatever the width") {
  struct Windows {
    Pair kernel;
    AvgPool2dOptions options;
  };
  const Windows windows[] = {
      {2, {}},
      {3, {.stride = 2, .padding = 1}},
      {3, {.stride = 2, .padding = 1, .count_include_pad = false}},
      {3, {.stride = 2, .ceil_mode = true}},
      {3, {.stride = 1, .padding = 1, .divisor_override = 8}},
      {3, {.stride = 2, .padding = 1, .ceil_mode = true, .count_include_pad = false}}};
  for (const auto& [kernel, options] : windows)
    for (const Shape& shape : {Shape{2, 3, 12, 16}, Shape{1, 2, 9, 24}, Shape{3, 1, 7, 19}})
      check_means(shape, kernel, options);
}

TEST_CASE("avg_pool2d: agrees on all devices in windows of any size") {
  check_means({2, 2, 9, 13}, 4, {});
  check_means({1, 3, 11, 14}, 5, {.stride = 3, .padding = 2, .ceil_mode = true});
  check_means({2, 1, 9, 12}, 3, {.stride = 1, .padding = 1});
  check_means({2, 1, 9, 12}, 4, {.stride = 1, .padding = 2, .count_include_pad = false});
  check_means({9, 7, 7, 7}, 7, {});
  check_means({2, 3, 13, 12}, 6, {.stride = 6, .padding = 3, .ceil_mode = true});
  check_means({1, 2, 33, 40}, 17, {.stride = 16, .padding = 8, .count_include_pad = false});
  check_means({2, 1, 70, 65}, {70, 64}, {});
  check_means({2, 3, 15, 19}, {4, 9}, {.padding = Pair(2, 4), .ceil_mode = true});
  check_means({2, 2, 14, 21}, {9, 8}, {.stride = 1, .padding = Pair(4, 3)});
  check_means({1, 1, 24, 45}, {20, 18}, {.stride = 1, .count_include_pad = false});
}

TEST_CASE("avg_pool2d: means of thousands of numbers, and their gradients, are right") {
  for (const auto& [side, kernel] : {std::pair{300, 200}, {40, 25}})
    for (const Device device : devices()) {
      const Tensor x = leaf(full({1, 1, side, side}, 0.1, {Dtype::f32, device}));
      const Tensor y = avg_pool2d(x, kernel, {.stride = 1});
      for (const double v : values(y)) CHECK(std::abs(v - 0.1f) <= long_sum * 0.1);
      y.backward(full(y.shape(), 0.1, y.options()));
      const Tensor wide = leaf(x.detach().to(cpu_device).to(Dtype::f64));
      const Tensor reference = avg_pool2d(wide, kernel, {.stride = 1});
      reference.backward(full(reference.shape(), 0.1f, reference.options()));
      check_close(x.grad(), wide.grad(), {0, long_sum}, "gradient");
    }
}

TEST_CASE("avg_pool2d: infinities and NaN stay what they are in f32 and bf16") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      for (const double v : {double(INFINITY), -double(INFINITY), std::nan("")}) {
        const Tensor x = leaf(full({1, 1, 6, 6}, v, {dtype, device}));
        const Tensor y = avg_pool2d(x, 3);
        y.backward(full(y.shape(), v, {dtype, device}));
        for (const Tensor& t : {y, x.grad()})
          for (const double w : values(t)) CHECK((std::isnan(v) ? std::isnan(w) : w == v));
      }
}

TEST_CASE("avg_pool2d: a constant image stays constant where padding is not counted") {
  for (const Device device : devices()) {
    const Tensor x = full({1, 2, 7, 5}, 3, {Dtype::f64, device});
    for (const double v : values(avg_pool2d(
             x, 3, {.stride = 2, .padding = 1, .ceil_mode = true, .count_include_pad = false})))
      CHECK(v == 3);
  }
}

TEST_CASE("avg_pool2d: impossible windows are refused") {
  const Tensor x = zeros({1, 1, 4, 4});
  const auto refuse = [&](Kind kind, const char* part, Pair kernel, AvgPool2dOptions o) {
    check_error(kind, {"avg_pool2d: ", part}, [&] { avg_pool2d(x, kernel, o); });
  };
  refuse(Kind::value, "divisor_override", 2, {.divisor_override = 0});
  refuse(Kind::value, "more than half", 2, {.padding = 2});
  refuse(Kind::value, "stride", 2, {.stride = 0});
  refuse(Kind::value, "kernel_size", 0, {});
  refuse(Kind::shape, "output would be empty", 5, {});
  check_error(Kind::shape, {"avg_pool2d: "}, [] { avg_pool2d(zeros({1, 1, 4, 0}), 2); });
}

TEST_CASE("avg_pool2d: what a window has below the padding is not counted") {
  const Tensor y = avg_pool2d(tensor<double>({1, 2, 3}, {1, 1, 3, 1}), {2, 1},
                              {.stride = Pair(2, 1), .ceil_mode = true});
  check_close(y, tensor<double>({1.5, 3}, {1, 1, 2, 1}), exact, "y");
}
