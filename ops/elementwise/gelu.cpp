#include "ebb/ops/elementwise/gelu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor gelu(const Tensor& x, const GeluOptions& options) {
  require_floating("gelu", "x", x);
  const bool approximate = options.approximate == "tanh";
  require(approximate || options.approximate == "none", Kind::value, "gelu",
          "unknown approximation", options.approximate, "tanh or none");
  Tensor y = empty_like(x);
  run_as_is<cpu::gelu, gpu::gelu>(x.device(), x, approximate, y);
  return record("gelu", y, {x}, [x = Saved(x), approximate](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::gelu_backward, gpu::gelu_backward>(dy.device(), x.get(), dy, approximate, dx);
    return {dx};
  });
}

namespace {

constexpr double c = 0.79788456080286535588;  // √(2/π)

// u(x). (1 + tanh(u)) / 2 is computed as 1 / (1 + e⁻²ᵘ): the sum would cancel for negative x.
template <class X>
X tanh_argument(X x) {
  return c * (x + 0.044715 * (x * x * x));
}

// Beyond this, to both sides, Φ is 0 or 1 and φ is 0 in f32 and f64.
constexpr int most = 40;

// e^(−x²/2); in f64 with what x² is short of after rounding.
template <class T>
cpu::Simd<T> bell(cpu::Simd<T> x) {
  const auto square = x * x, e = exp(square * T(-0.5));
  if constexpr (sizeof(T) == 4) return e;
  return e * (1 - fma(x, x, -square) * T(0.5));
}

// Φ(x) by its upper tail t · q(2t − 1) · e^(−x²/2), t = 1 / (1 + |x| / s), with a polynomial q
// through the Chebyshev points: of f32 within 7e-8 of itself however small it is, of f64 5e-17.
template <class T>
cpu::Simd<T> normal_cdf(cpu::Simd<T> x, cpu::Simd<T> bell) {
  constexpr bool f64 = sizeof(T) == 8;
  const auto t = quotient(cpu::Simd<T>(1), 1 + abs(x) * T(f64 ? 1. / 5 : 1. / 4)), u = t + t - 1;
  auto q = t;
  if constexpr (f64)
    q = cpu::polynomial<T>(
        u, {-1.6332385248857973e-10, -1.0074604252759712e-10, 1.8893655039354733e-9,
            1.0031299879715714e-9,   -1.3565110626582311e-8,  -7.1636801030864468e-9,
            8.6805251896595507e-8,   6.621396143053724e-8,    -5.5386757420877083e-7,
            -7.9558252811864845e-7,  3.3362198231726934e-6,   9.9523542379584365e-6,
            -1.1875134657297731e-5,  -1.08979766180186e-4,    -1.5957388189616127e-4,
            5.9867534764464399e-4,   4.1590133601883231e-3,   1.3823727741762866e-2,
            3.3004073234068563e-2,   6.2706631334242753e-2,   9.9061123193995358e-2,
            1.3307650057801154e-1,   1.5383860995001259e-1});
  else
    q = cpu::polynomial<T>(
        u, {4.06540789e-5, 3.23350308e-5, -3.9393802e-4, -8.69049115e-4, 1.88031388e-3,
            1.50988284e-2, 4.66310461e-2, 9.67843899e-2, 1.51974149e-1, 1.88821282e-1});
  const auto tail = q * t * bell;
  return select(x < 0, tail, 1 - tail);
}

}  // namespace

void cpu::gelu(const Tensor& x, bool approximate, Tensor& y) {
  if (approximate)
    map(y, x, [](auto x) { return x / (1 + exp(-2 * tanh_argument(x))); });
  else
    map(y, x, [](auto x) {
      const auto b = clamp(x, -most, most);
      return x * normal_cdf(b, bell(b));
    });
}

void cpu::gelu_backward(const Tensor& x, const Tensor& dy, bool approximate, Tensor& dx) {
  if (approximate) {
    map(dx, x, dy, [](auto x, auto dy) {
      const auto b = clamp(x, -most, most);
      const auto half = 1 / (1 + exp(-2 * tanh_argument(b)));  // (1 + tanh(u)) / 2
      const auto slope = c * (1 + 0.134145 * (b * b));
      return dy * (half + 2 * b * half * (1 - half) * slope);
    });
  } else {
    map(dx, x, dy, [](auto x, auto dy) {
      const auto b = clamp(x, -most, most), e = bell(b);
      constexpr double scale = 0.39894228040143267794;  // 1/√(2π)
      return dy * (normal_cdf(b, e) + b * e * scale);
    });
  }
}

}  // namespace ebb
