#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// Distinct multiples of 1/16 in random order: no ties, no kink within a step of the check.
Tensor distinct(const Shape& shape, std::uint64_t seed) {
  Generator generator(seed);
  const Tensor order = permutation(shape.numel(), generator);
  std::vector<double> v;
  for (const std::int32_t i : order.to_vector<std::int32_t>()) v.push_back(i / 16.0);
  return tensor(v, shape);
}

Function with(Pair kernel, MaxPool2dOptions o) {
  return [=](const Tensors& in) { return max_pool2d(in[0], kernel, o); };
}

struct Case {
  Shape shape;
  Pair kernel;
  MaxPool2dOptions options;
};
const Case cases[] = {
    {{2, 2, 4, 8}, 2, {}},
    {{1, 3, 5, 6}, 2, {}},
    {{1, 1, 5, 7}, 2, {.ceil_mode = true}},
    {{1, 2, 5, 8}, 2, {.ceil_mode = true}},
    {{2, 1, 8, 8}, 3, {.stride = 2, .padding = 1}},
    {{2, 1, 7, 8}, 3, {.stride = 2, .padding = 1, .ceil_mode = true}},
    {{1, 2, 7, 9}, 3, {.stride = 1, .padding = 1}},
    {{1, 1, 9, 8}, {3, 2}, {.stride = Pair(2, 1), .padding = Pair(1, 0), .dilation = Pair(2, 3)}},
    {{3, 6, 6}, 2, {.stride = 3}},
    {{1, 1, 1, 1}, 1, {}},
    {{1, 1, 20, 17}, 16, {.stride = 2}},
};

}  // namespace

TEST_CASE("max_pool2d: literal values, ties, NaN, -inf and padding") {
  const auto pooled = [](const std::vector<float>& v, Device device, MaxPool2dOptions o = {}) {
    Tensor x = leaf(tensor<float>(v, {1, 1, 2, 2}, device));
    const Tensor y = max_pool2d(x, 2, o);
    y.backward(ones_like(y));
    return std::pair(values(y), values(x.grad()));
  };
  using V = std::vector<double>;
  for (const Device device : devices()) {
    CHECK(pooled({1, 2, 2, 2}, device) == std::pair(V{2}, V{0, 1, 0, 0}));
    CHECK(pooled({-INFINITY, -INFINITY, -INFINITY, -INFINITY}, device) ==
          std::pair(V{-INFINITY}, V{1, 0, 0, 0}));
    const auto [y, dx] = pooled({1, NAN, 3, 2}, device);
    CHECK(std::isnan(y[0]));
    CHECK(dx == V{0, 1, 0, 0});
    CHECK(pooled({-5, -6, -7, -8}, device, {.padding = 1}) ==
          std::pair(V{-5, -6, -7, -8}, V{1, 1, 1, 1}));
  }
}

TEST_CASE("max_pool2d: gradients agree with finite differences") {
  for (const auto& [shape, kernel, options] : cases)
    check_gradients(with(kernel, options), {distinct(shape, 1)}, {.atol = 1e-10, .rtol = 1e-10});
}

TEST_CASE("max_pool2d: twins agree bit for bit, but for sums of gradients") {
  for (const auto& [shape, kernel, options] : cases)
    check_twins(with(kernel, options), {distinct(shape, 2)}, {exact, {1e-6, 1e-6}});
  check_twins(with(2, {}), {distinct({3, 5, 24, 24}, 3)}, {exact, exact});
  check_twins(with(2, {}), {distinct({1, 2, 6, 270}, 4)}, {exact, exact});
  check_twins(with(2, {}), {randn({0, 3, 4, 4}, 5)}, {exact, exact});
}

// Few different values, so that windows have ties, zeros of both signs and infinities, and one in
// `of` is NaN.
Tensor coarse(const Shape& shape, Dtype dtype, int of = 9) {
  Generator generator(6);
  std::vector<double> v;
  for (const std::int32_t i : permutation(shape.numel(), generator).to_vector<std::int32_t>())
    v.push_back(i % of == 0 ? NAN : i % 7 == 0 ? -INFINITY : i % 5 == 2 && i % 2 ? -0. : i % 5 - 2);
  return tensor(v, shape).to(dtype);
}

// The definition: of each window the first maximum in scan order, or the last NaN; and dx.
std::pair<Tensor, Tensor> scanned(const Tensor& x, const Tensor& dy, Pair kernel,
                                  const MaxPool2dOptions& o) {
  const Pair stride = o.stride.value_or(kernel);
  const std::int64_t h = x.size(-2), w = x.size(-1), p = dy.size(-2), q = dy.size(-1);
  const std::vector<double> in = values(x), upstream = values(dy);
  std::vector<double> y(upstream.size()), dx(in.size());
  for (std::int64_t i = 0; i < dy.numel(); ++i) {
    size_t best = in.size();
    for (std::int64_t a = 0; a < kernel.h; ++a)
      for (std::int64_t b = 0; b < kernel.w; ++b) {
        const std::int64_t row = i / q % p * stride.h - o.padding.h + a * o.dilation.h;
        const std::int64_t col = i % q * stride.w - o.padding.w + b * o.dilation.w;
        if (row < 0 || row >= h || col < 0 || col >= w) continue;
        const auto at = static_cast<size_t>((i / (p * q) * h + row) * w + col);
        if (best == in.size() || in[at] > in[best] || std::isnan(in[at])) best = at;
      }
    y[static_cast<size_t>(i)] = in.at(best);
    dx[best] += upstream[static_cast<size_t>(i)];
  }
  return {tensor(y, dy.shape()), tensor(dx, x.shape())};
}

void check_places(const Shape& shape, Pair kernel, const MaxPool2dOptions& options, int of = 9) {
  const Tolerance sum_of_four{0, 0.005};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = coarse(shape, dtype, of);
    const Tensor dy = randn(max_pool2d(x, kernel, options).shape(), 7).to(dtype);
    const auto [value, gradient] = scanned(x, dy, kernel, options);
    for (const Device device : devices()) {
      const Tensor there = leaf(x.to(device));
      const Tensor y = max_pool2d(there, kernel, options);
      check_close(y, value, exact, "value");
      check_close(max_pool2d(x.to(device), kernel, options), value, exact, "without a gradient");
      y.backward(dy.to(device));
      check_close(there.grad(), gradient, sum_of_four, "gradient");
    }
  }
}

TEST_CASE("max_pool2d: ties go to the first and NaN to the last, on all devices, at all edges") {
  struct Windows {
    Pair kernel;
    MaxPool2dOptions options;
  };
  const Windows windows[] = {{2, {}},
                             {3, {.stride = 2, .padding = 1}},
                             {3, {.stride = 2}},
                             {3, {.stride = 1, .padding = 1}},
                             {3, {.stride = 2, .padding = 1, .ceil_mode = true}},
                             {{1, 2}, {}},
                             {{1, 3}, {.stride = Pair(1, 2), .padding = Pair(0, 1)}},
                             {{1, 3}, {.stride = Pair(1, 1), .padding = Pair(0, 1)}}};
  for (const auto& [kernel, options] : windows)
    for (const Shape& shape : {Shape{2, 3, 12, 16}, Shape{1, 2, 9, 24}, Shape{3, 1, 7, 19},
                               Shape{5, 7, 6, 5}, Shape{17, 1, 3, 40}})
      check_places(shape, kernel, options);
}

TEST_CASE("max_pool2d: ties go to the first and NaN to the last in windows of any size") {
  check_places({2, 2, 9, 13}, 4, {});
  check_places({1, 3, 11, 14}, 5, {.stride = 3, .padding = 2, .ceil_mode = true});
  check_places({2, 1, 9, 12}, 3, {.stride = 1, .padding = 1, .dilation = 2});
  check_places({1, 2, 11, 17}, 2, {.stride = 1, .padding = 1, .dilation = Pair(3, 4)});
  check_places({9, 7, 7, 7}, 7, {}, 97);
  check_places({2, 3, 13, 12}, 6, {.stride = 6, .padding = 3, .ceil_mode = true}, 97);
  check_places({3, 13, 20, 20}, 17, {.stride = 16, .padding = 8, .ceil_mode = true}, 997);
  check_places({5, 6, 9, 13}, 2, {.stride = 1, .padding = 1, .dilation = Pair(3, 4)});
  check_places({1, 2, 33, 40}, 17, {.stride = 16, .padding = 8, .ceil_mode = true}, 997);
  check_places({2, 1, 70, 65}, {70, 64}, {}, 9973);
  check_places({2, 3, 15, 19}, {4, 9}, {.padding = Pair(2, 4), .ceil_mode = true}, 97);
  check_places({2, 2, 14, 21}, {9, 8}, {.stride = 1, .padding = Pair(4, 3)}, 97);
  check_places({1, 3, 16, 17}, {2, 4},
               {.stride = 1, .padding = Pair(1, 2), .dilation = Pair(3, 2)});
  check_places({2, 1, 40, 60}, {16, 5}, {.stride = Pair(17, 16), .dilation = Pair(2, 3)}, 997);
}

TEST_CASE("max_pool2d: the gradient of a place that thousands of windows chose is their sum") {
  const std::int64_t side = 119;  // of which each of 60 · 60 windows sees the middle
  std::vector<float> peak(static_cast<size_t>(side * side));
  peak[peak.size() / 2] = 1;
  for (const Device device : devices()) {
    const Tensor x = leaf(tensor<float>(peak, {1, 1, side, side}, device));
    const Tensor y = max_pool2d(x, 60, {.stride = 1});
    y.backward(full(y.shape(), 0.1, y.options()));
    const double sum = 3600 * static_cast<double>(0.1f);
    CHECK(std::abs(values(x.grad())[peak.size() / 2] - sum) <= long_sum * sum);
  }
}

TEST_CASE("max_pool2d: rows that no window covers have a zero gradient") {
  for (const Device device : devices()) {
    Tensor x = leaf(ones({1, 1, 3, 4}, {Dtype::f32, device}));
    const Tensor y = max_pool2d(x, 2);
    y.backward(ones_like(y));
    CHECK(values(x.grad()) == std::vector<double>{1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  }
}

TEST_CASE("max_pool2d: impossible windows are refused") {
  const Tensor x = zeros({1, 1, 4, 4});
  const auto refuse = [&](Kind kind, const char* part, Pair kernel, MaxPool2dOptions o) {
    check_error(kind, {"max_pool2d: ", part}, [&] { max_pool2d(x, kernel, o); });
  };
  refuse(Kind::value, "more than half", 2, {.padding = 2});
  refuse(Kind::value, "padding", 2, {.padding = -1});
  refuse(Kind::value, "kernel_size", 0, {});
  refuse(Kind::value, "stride", 2, {.stride = 0});
  refuse(Kind::value, "dilation", 2, {.dilation = 0});
  refuse(Kind::shape, "output would be empty", 5, {});
  refuse(Kind::limit, "kernel_size", std::int64_t{1} << 40, {});
  for (const Shape& shape : {Shape{1, 0, 4, 4}, Shape{1, 1, 0, 4}, Shape{4, 4}, Shape{4}})
    check_error(Kind::shape, {"max_pool2d: "}, [&] { max_pool2d(zeros(shape), 2); });
  check_error(Kind::dtype, {"max_pool2d: x must be floating"}, [] {
    max_pool2d(zeros({1, 1, 2, 2}, {.dtype = Dtype::u8}), 2);
  });
}
