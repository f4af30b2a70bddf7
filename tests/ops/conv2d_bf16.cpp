// bf16, which the CPU may multiply in pairs.
#include "conv2d.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("conv2d: bf16 results are the f32 results rounded") {
  const Tensor x = randn({2, 3, 6, 6}, 21, Dtype::bf16), w = randn({4, 3, 3, 3}, 22, Dtype::bf16);
  const Tensor wide = conv2d(x.to(Dtype::f32), w.to(Dtype::f32));
  check_close(conv2d(x, w), wide.to(Dtype::bf16), exact, "y");
}

namespace {

// y, dx and dw of the numbers of x, w and dy, in this type.
Tensors all_of(const Tensor& x, const Tensor& w, const Tensor& dy, const Conv2dOptions& options,
               Dtype as) {
  const Tensor a = leaf(x.to(as)), b = leaf(w.to(as));
  const Tensor y = conv2d(a, b, {}, options);
  y.backward(dy.to(as));
  return {y.detach(), a.grad(), b.grad()};
}

}  // namespace

TEST_CASE("conv2d: bf16 keeps class E on the CPU, whatever can make pairs") {
  const Conv2dCase cases[] = {
      {{4, 16, 12, 13}, {40, 16, 3, 3}, {.padding = 1}},
      {{3, 5, 12, 13}, {7, 5, 3, 3}, {.padding = 1}},  // an odd number of everything
      {{1, 9, 15, 14}, {33, 9, 3, 5}, {.stride = 2, .padding = {1, 2}, .dilation = {2, 1}}},
      {{1, 16, 1, 90}, {8, 16, 1, 7}, {.stride = 3}},  // neither images nor rows
      {{20, 32, 4, 4}, {48, 32, 3, 3}, {.padding = 1}},
      {{5, 18, 9, 10}, {12, 6, 3, 3}, {.padding = 1, .groups = 3}},
      {{2, 64, 8, 8}, {130, 64, 1, 1}, {}},
      {{2, 3, 64, 64}, {96, 3, 16, 16}, {.stride = 16}},
      {{4, 24, 20, 20}, {3, 24, 3, 3}, {.padding = 1}},
  };
  for (const Conv2dCase& c : cases) {
    const Tensor x = randn(c.x, 41, Dtype::bf16), w = randn(c.w, 42, Dtype::bf16);
    const Tensor dy = randn(conv2d(x, w, {}, c.options).shape(), 43, Dtype::bf16);
    const Tensors reference = all_of(x, w, dy, c.options, Dtype::f64);
    const Tensors got = all_of(x, w, dy, c.options, Dtype::bf16);
    const std::int64_t taps = c.w.product(2, 4), filters = c.w[0] / c.options.groups;
    const std::int64_t terms[] = {c.w[1] * taps, filters * taps, dy.numel() / c.w[0]};
    for (size_t i = 0; i < got.size(); ++i) {
      Tolerance tolerance = sums(terms[i], 0).value;
      tolerance.relative = 0x1p-8;  // half an ulp
      std::ostringstream what;
      what << "result " << i << " from " << c.x << ' ' << c.w;
      check_close(got[i], reference[i], tolerance, what.str());
    }
  }
}

// An instruction for pairs of bf16 takes denormals for 0, in factors, products and sums.
TEST_CASE("conv2d: bf16 keeps denormals, and what infinities and NaN are seen by") {
  const auto few = [](const Shape& shape, std::uint64_t seed) {  // so small that sums are exact
    Generator g(seed);
    Tensor x = uniform(shape, -3, 3, g, {Dtype::f32, cpu_device});
    for (std::int64_t i = 0; i < x.numel(); ++i)
      x.data<float>()[i] = std::round(x.data<float>()[i]);
    return x.to(Dtype::f64);
  };
  const Conv2dOptions options{.padding = 1};
  const Tensor x = few({2, 4, 6, 6}, 44), w = few({4, 4, 3, 3}, 45), dy = few({2, 4, 6, 6}, 46);
  const auto check = [&](const Tensor& a, const Tensor& b, const Tensor& d,
                         const std::string& what) {
    const Tensors reference = all_of(a, b, d, options, Dtype::f64);
    const Tensors got = all_of(a, b, d, options, Dtype::bf16);
    for (size_t i = 0; i < got.size(); ++i)
      check_close(got[i], reference[i].to(Dtype::f32).to(Dtype::bf16), exact,
                  "result " + std::to_string(i) + " of " + what);
  };
  check(x * 0x1p-70, w * 0x1p-62, dy * 0x1p-65, "products that are denormals");
  check(x * 0x1p-130, w * 0x1p+100, dy * 0x1p-40, "denormal x");
  check(x * 0x1p-20, w * 0x1p-131, dy * 0x1p+90, "denormal w");
  check(x * 0x1p-60, w * 0x1p-40, dy * 0x1p-50, "what is small but normal");
  Tensor infinite = x.clone();
  infinite.data<double>()[40] = std::numeric_limits<double>::infinity();
  infinite.data<double>()[200] = std::numeric_limits<double>::quiet_NaN();
  check(infinite, w, dy, "an infinity and a NaN");
}
