#include "conv2d.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// in = {x, w} or {x, w, b}
Function conv(Conv2dOptions options = {}) {
  return [options](const Tensors& in) {
    return conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options);
  };
}

// The definition and its derivatives, in double, a product at a time.
struct Definition {
  std::vector<double> y, dx, dw;
};
Definition by_definition(const Tensor& x, const Tensor& w, const Tensor& dy,
                         const Conv2dOptions& o) {
  const auto a = values(x), b = values(w), c = values(dy);
  Definition d{std::vector<double>(c.size()), std::vector<double>(a.size()),
               std::vector<double>(b.size())};
  const std::int64_t in_group = w.size(1), filters = w.size(0) / o.groups;
  size_t at = 0;
  for (std::int64_t nk = 0; nk < dy.shape().product(0, 2); ++nk)
    for (std::int64_t p = 0; p < dy.size(2); ++p)
      for (std::int64_t q = 0; q < dy.size(3); ++q, ++at)
        for (std::int64_t crs = 0; crs < w.shape().product(1, 4); ++crs) {
          const std::int64_t n = nk / w.size(0), k = nk % w.size(0);
          const std::int64_t r = crs / w.size(3) % w.size(2), s = crs % w.size(3);
          const std::int64_t i = p * o.stride.h + r * o.dilation.h - o.padding.h;
          const std::int64_t j = q * o.stride.w + s * o.dilation.w - o.padding.w;
          if (i < 0 || j < 0 || i >= x.size(2) || j >= x.size(3)) continue;
          const std::int64_t channel = k / filters * in_group + crs / w.shape().product(2, 4);
          const auto pixel =
              static_cast<size_t>(((n * x.size(1) + channel) * x.size(2) + i) * x.size(3) + j);
          const auto weight = static_cast<size_t>(k * w.shape().product(1, 4) + crs);
          d.y[at] += a[pixel] * b[weight];
          d.dx[pixel] += c[at] * b[weight];
          d.dw[weight] += c[at] * a[pixel];
        }
  return d;
}

const std::vector<Conv2dCase>& cases() {
  static const std::vector<Conv2dCase> all = {
      {{2, 1, 28, 28}, {32, 1, 3, 3}, {}},                           // first layer
      {{2, 5, 9, 17}, {37, 5, 3, 3}, {.padding = 1}},                // ragged channels
      {{1, 3, 15, 16}, {18, 3, 7, 7}, {.stride = 2, .padding = 3}},  // a stem
      {{2, 20, 6, 5}, {33, 20, 1, 1}, {}},                           // 1×1, flattened
      {{2, 20, 6, 5}, {9, 20, 1, 1}, {.stride = 2}},                 // 1×1 that skips pixels
      {{3, 8, 11, 19}, {8, 1, 3, 3}, {.padding = 1, .groups = 8}},   // depthwise
      {{1, 4, 9, 40}, {8, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 4}},
      {{1, 6, 7, 10}, {40, 3, 2, 3}, {.dilation = {2, 3}, .groups = 2}},
      {{2, 3, 5, 7}, {4, 3, 5, 7}, {}},                                     // kernel = image
      {{2, 3, 1, 1}, {5, 3, 3, 3}, {.padding = 1}},                         // 1×1 image in padding
      {{1, 2, 11, 13}, {17, 2, 2, 2}, {.stride = {3, 5}}},                  // stride > kernel
      {{1, 2, 3, 400}, {70, 2, 1, 4}, {.padding = {0, 5}, .dilation = 2}},  // wide rows
      {{1, 2, 8, 9}, {3, 2, 3, 2}, {.stride = {1, 3}, .padding = {4, 0}, .dilation = {1, 2}}},
      {{1, 300, 4, 5}, {34, 300, 3, 3}, {.padding = 1}},               // blocks of channels
      {{5, 3, 150, 148}, {10, 3, 7, 7}, {.stride = 2, .padding = 3}},  // dx of few channels
      {{1, 1, 1, 1}, {1, 1, 1, 1}, {}},
  };
  return all;
}

}  // namespace

TEST_CASE("conv2d: a correlation with bias, the kernel not flipped") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 2, 3, 4, 5, 6, 7, 8, 9}, {1, 1, 3, 3}, device);
    const Tensor w = tensor<float>({1, 2, 3, 4, -1, 0, 0, 1}, {2, 1, 2, 2}, device);
    const Tensor b = tensor<float>({0.5f, -1}, {2}, device);
    check_close(conv2d(x, w, b), tensor<double>({37.5, 47.5, 67.5, 77.5, 3, 3, 3, 3}, {1, 2, 2, 2}),
                exact, "y");
    check_close(conv2d(x, w, {}, {.stride = 2, .padding = 1}),
                tensor<double>({4, 18, 36, 77, 1, 3, 7, 4}, {1, 2, 2, 2}), exact, "padded");
    check_close(conv2d(x, w, {}, {.dilation = 2}), tensor<double>({64, 8}, {1, 2, 1, 1}), exact,
                "dilated");
  }
}

TEST_CASE("conv2d: equals its definition for every stride, padding, dilation and grouping") {
  for (const Conv2dCase& c : cases()) {
    const Tensor x = randn(c.x, 1), w = randn(c.w, 2);
    const Tensor dy = randn(conv2d(x, w, {}, c.options).shape(), 3);
    const Definition expected = by_definition(x, w, dy, c.options);
    for (const Device device : devices()) {
      const Tensor a = leaf(x.to(device)), b = leaf(w.to(device));
      const Tensor y = conv2d(a, b, {}, c.options);
      y.backward(dy.to(device));
      std::ostringstream what;
      what << a << ' ' << w;
      constexpr Tolerance rounding{1e-11, 1e-12};
      check_close(y, tensor<double>(expected.y, y.shape()), rounding, "y " + what.str());
      check_close(a.grad(), tensor<double>(expected.dx, c.x), rounding, "dx " + what.str());
      check_close(b.grad(), tensor<double>(expected.dw, c.w), rounding, "dw " + what.str());
    }
  }
}

TEST_CASE("conv2d: gradients agree with finite differences") {
  const Tensor x = randn({2, 4, 4, 3}, 4), w = randn({4, 2, 3, 2}, 5), b = randn({4}, 6);
  for (const Conv2dOptions& o :
       {Conv2dOptions{.groups = 2}, Conv2dOptions{.stride = {2, 1}, .padding = 1, .groups = 2},
        Conv2dOptions{.padding = {2, 0}, .dilation = {1, 2}, .groups = 2}})
    check_gradients(conv(o), {x, w, b});
  check_gradients(conv(), {randn({1, 2, 3, 4}, 7), randn({3, 2, 2, 2}, 8)});
}

TEST_CASE("conv2d: twins agree at ragged, 1 and 0 sizes") {
  for (const Conv2dCase& c : cases()) {
    const Shape y = conv2d(randn(c.x, 9), randn(c.w, 10), {}, c.options).shape();
    const std::int64_t taps = c.w.product(2, 4), filters = c.w[0] / c.options.groups;
    const std::int64_t pixels = y[0] * y[2] * y[3];
    check_twins(conv(c.options), {randn(c.x, 9), randn(c.w, 10), randn({c.w[0]}, 11)},
                sums(c.w[1] * taps, std::max(filters * taps, pixels)));
  }
  for (const Shape& x : {Shape{0, 3, 8, 8}, Shape{2, 3, 8, 8}})
    for (const std::int64_t filters : {0, 5})
      check_twins(conv(), {randn(x, 12), randn({filters, 3, 3, 3}, 13), randn({filters}, 14)},
                  sums(27, 72));
}

TEST_CASE("conv2d: an empty batch gives an empty result and zero weight gradients") {
  for (const Device device : devices()) {
    for (const auto& [channels, filters, groups] :
         {std::tuple{3, 4, 1}, {16, 32, 1}, {16, 16, 16}}) {
      const Tensor x = leaf(zeros({0, channels, 6, 6}, {.device = device}));
      const Tensor w = leaf(randn({filters, channels / groups, 3, 3}, 17, Dtype::f32, device));
      const Tensor b = leaf(randn({filters}, 18, Dtype::f32, device));
      const Tensor y = conv2d(x, w, b, {.padding = 1, .groups = groups});
      CHECK(y.shape() == Shape{0, filters, 6, 6});
      y.backward(zeros(y.shape(), {.device = device}));
      check_close(w.grad(), zeros(w.shape()), exact, "dw");
      check_close(b.grad(), zeros(b.shape()), exact, "db");
      CHECK(x.grad().shape() == x.shape());
    }
  }
}

TEST_CASE("conv2d: an input that needs no gradient gets none") {
  for (const Device device : devices()) {
    const Tensor x = randn({1, 2, 5, 5}, 19, Dtype::f32, device);
    const Tensor w = leaf(randn({3, 2, 3, 3}, 20, Dtype::f32, device));
    conv2d(x, w).backward(ones({1, 3, 3, 3}, {.device = device}));
    CHECK_FALSE(x.grad().defined());
    CHECK(w.grad().defined());
  }
}

TEST_CASE("conv2d: a stride or dilation beyond the image is as good as one of its size") {
  const std::int64_t far = std::int64_t{1} << 31;
  for (const Device device : devices())
    for (const std::int64_t groups : {1, 4}) {
      const auto run = [&](const Shape& kernel, Conv2dOptions options) {
        options.groups = groups;
        const Tensor x = leaf(randn({2, 4, 5, 6}, 1, Dtype::f32, device)),
                     w = leaf(randn({4, 4 / groups, kernel[0], kernel[1]}, 2, Dtype::f32, device));
        const Tensor y = conv2d(x, w, {}, options);
        y.backward(randn(y.shape(), 3, Dtype::f32, device));
        return Tensors{y.detach(), x.grad(), w.grad()};
      };
      const auto check = [&](const Tensors& a, const Tensors& b) {
        for (size_t i = 0; i < 3; ++i) check_close(a[i], b[i], exact, "y, dx or dw");
      };
      check(run({5, 6}, {.stride = far}), run({5, 6}, {.stride = Pair(5, 6)}));
      check(run({3, 1}, {.stride = Pair(far, 2), .dilation = Pair(1, far)}),
            run({3, 1}, {.stride = Pair(5, 2), .dilation = Pair(1, 6)}));
    }
}

TEST_CASE("conv2d: bad arguments are refused") {
  const auto z = [](const Shape& shape) { return zeros(shape); };
  const Tensor x = z({1, 2, 5, 5}), w = z({4, 2, 3, 3});
  check_error(Kind::shape, {"conv2d: ", "input 2", "weight expects 4"}, [&] {
    conv2d(x, z({4, 4, 3, 3}));
  });
  check_error(Kind::value, {"conv2d: ", "groups", "got 0"},
              [&] { conv2d(x, w, {}, {.groups = 0}); });
  check_error(Kind::value, {"conv2d: ", "groups do not divide the input"},
              [&] { conv2d(x, w, {}, {.groups = 3}); });
  check_error(Kind::value, {"conv2d: ", "groups do not divide the output"}, [&] {
    conv2d(x, z({3, 1, 3, 3}), {}, {.groups = 2});
  });
  for (const int stride : {0, -1})
    check_error(Kind::value, {"conv2d: ", "stride"}, [&] { conv2d(x, w, {}, {.stride = stride}); });
  check_error(Kind::value, {"conv2d: ", "dilation"}, [&] {
    conv2d(x, w, {}, {.dilation = {1, 0}});
  });
  check_error(Kind::value, {"conv2d: ", "padding"}, [&] { conv2d(x, w, {}, {.padding = -1}); });
  check_error(Kind::shape, {"conv2d: ", "larger than the padded input"}, [&] {
    conv2d(x, z({4, 2, 3, 6}));
  });
  check_error(Kind::shape, {"conv2d: ", "[N,C,H,W]", "[2,5]"}, [&] { conv2d(z({2, 5}), w); });
  check_error(Kind::shape, {"conv2d: ", "[N,C,H,W]"}, [&] { conv2d(z({1, 1, 2, 5, 5}), w); });
  check_error(Kind::shape, {"conv2d: the kernel has a side of 0"}, [&] {
    conv2d(x, z({4, 2, 0, 3}));
  });
  for (const Shape& shape : {Shape{1, 2, 0, 5}, Shape{1, 2, 5, 0}})
    check_error(Kind::shape, {"conv2d: the image has a side of 0"},
                [&] { conv2d(z(shape), w, {}, {.padding = 3}); });
  check_error(Kind::shape, {"conv2d: b", "[3]", "[4]"}, [&] { conv2d(x, w, z({3})); });
  for (const std::int64_t padding : {(std::int64_t{1} << 31) - 1, std::int64_t{1} << 62})
    check_error(Kind::limit, {"conv2d: "}, [&] { conv2d(x, w, {}, {.padding = padding}); });
  const std::int64_t far = std::int64_t{1} << 31;  // its padded image has 2^64 pixels
  check_error(Kind::limit, {"conv2d: "}, [&] {
    conv2d(x, z({4, 2, 4, 4}), {}, {.stride = far, .padding = far, .dilation = far / 3 * 2});
  });
  check_error(Kind::dtype, {"conv2d: "}, [&] { conv2d(x, w.to(Dtype::f64)); });
  check_error(Kind::dtype, {"conv2d: ", "got i32"},
              [&] { conv2d(x.to(Dtype::i32), w.to(Dtype::i32)); });
  CHECK(conv2d(x, w).shape() == Shape{1, 4, 3, 3});
}
