#include "ebb/ops/elementwise/gelu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor gelu(const Tensor& x, const GeluOptions& options) {
  require_floating("gelu", "x", x);
  const bool approximate = options.approximate == "tanh";
  require(approximate || options.approximate == "none", Kind::value, "gelu",
          "unknown approximation", options.approximate, "tanh or none");
  Tensor y = empty_like(x);
  run<cpu::gelu, gpu::gelu>(x.device(), x, approximate, y);
  return record("gelu", y, {x}, [x = Saved(x), approximate](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::gelu_backward, gpu::gelu_backward>(dy.device(), x.get(), dy, approximate, dx);
    return {dx};
  });
}

namespace {

template <class T>
constexpr T c = T(0.79788456080286535588);  // √(2/π)

// u(x). (1 + tanh(u)) / 2 is computed as 1 / (1 + e⁻²ᵘ): the sum would cancel for negative x.
template <class T, class X>
X tanh_argument(X x) {
  return c<T> * (x + T(0.044715) * (x * x * x));
}

// Beyond ±25, Φ is 0 or 1 and φ is 0 in f32 and f64; NaN stays NaN.
template <class X>
X clamped(X x) {
  return select(25 < x, 25, select(x < -25, -25, x));
}

// Φ(x). The upper tail is t · q(t) · e^(−x²/2) with t = 1 / (1 + |x|/4) and a polynomial q through
// the Chebyshev points of (0, 1]: within 4e-7 of itself however small it is.
template <class T, class X>
X normal_cdf(X x, X density) {
  if constexpr (std::is_same_v<T, double>) {
    return each(x, [](double e) { return std::erfc(e * -M_SQRT1_2) / 2; });
  } else {
    constexpr T coefficients[] = {0.0208148884f, -0.0853892299f, 0.103798858f,  -0.0397468634f,
                                  0.0682739957f, 0.0574462582f,  0.0818896318f, 0.0934395147f,
                                  0.0997373968f, 0.099735561f};
    const X t = 1 / (1 + abs(x) * T(0.25));
    X q = coefficients[0];
    for (int i = 1; i < 10; ++i) q = q * t + coefficients[i];
    const X tail = q * t * density;
    return select(x < 0, tail, 1 - tail);
  }
}

}  // namespace

void cpu::gelu(const Tensor& x, bool approximate, Tensor& y) {
  visit<float, double>(x.dtype(), "gelu", [&](auto zero) {
    using T = decltype(zero);
    if (approximate) {
      map<T>(
          y, [](auto x) { return x / (1 + exp(T(-2) * tanh_argument<T>(x))); }, x);
    } else {
      map<T>(
          y, [](auto x) { return x * normal_cdf<T>(x, exp(x * x * T(-0.5))); }, x);
    }
  });
}

void cpu::gelu_backward(const Tensor& x, const Tensor& dy, bool approximate, Tensor& dx) {
  visit<float, double>(x.dtype(), "gelu", [&](auto zero) {
    using T = decltype(zero);
    const auto with_tanh = [](auto x, auto dy) {
      const auto b = clamped(x);
      const auto half = 1 / (1 + exp(T(-2) * tanh_argument<T>(b)));  // (1 + tanh(u)) / 2
      const auto slope = c<T> * (1 + T(0.134145) * (b * b));
      return dy * (half + 2 * b * half * (1 - half) * slope);
    };
    const auto with_erf = [](auto x, auto dy) {
      const auto density = exp(x * x * T(-0.5));
      constexpr T scale = T(0.39894228040143267794);  // 1/√(2π)
      return dy * (normal_cdf<T>(x, density) + x * (density * scale));
    };
    approximate ? map<T>(dx, with_tanh, x, dy) : map<T>(dx, with_erf, x, dy);
  });
}

}  // namespace ebb
