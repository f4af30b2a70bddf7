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

// Beyond ±25, Φ is 0 or 1 and φ is 0 in f32 and f64; NaN stays NaN.
template <class X>
X clamped(X x) {
  return select(25 < x, 25, select(x < -25, -25, x));
}

// Φ(x). The upper tail is t · q(t) · e^(−x²/2) with t = 1 / (1 + |x|/4) and a polynomial q through
// the Chebyshev points of (0, 1]: within 4e-7 of itself however small it is.
cpu::Simd<float> normal_cdf(cpu::Simd<float> x, cpu::Simd<float> density) {
  constexpr float coefficients[] = {0.0208148884f, -0.0853892299f, 0.103798858f,  -0.0397468634f,
                                    0.0682739957f, 0.0574462582f,  0.0818896318f, 0.0934395147f,
                                    0.0997373968f, 0.099735561f};
  const auto t = 1 / (1 + abs(x) * 0.25);
  cpu::Simd<float> q = coefficients[0];
  for (int i = 1; i < 10; ++i) q = q * t + coefficients[i];
  const auto tail = q * t * density;
  return select(x < 0, tail, 1 - tail);
}

cpu::Simd<double> normal_cdf(cpu::Simd<double> x, cpu::Simd<double>) {
  return each(x, [](double e) { return std::erfc(e * -M_SQRT1_2) / 2; });
}

}  // namespace

void cpu::gelu(const Tensor& x, bool approximate, Tensor& y) {
  if (approximate)
    map(y, x, [](auto x) { return x / (1 + exp(-2 * tanh_argument(x))); });
  else
    map(y, x, [](auto x) { return x * normal_cdf(x, exp(x * x * -0.5)); });
}

void cpu::gelu_backward(const Tensor& x, const Tensor& dy, bool approximate, Tensor& dx) {
  if (approximate) {
    map(dx, x, dy, [](auto x, auto dy) {
      const auto b = clamped(x);
      const auto half = 1 / (1 + exp(-2 * tanh_argument(b)));  // (1 + tanh(u)) / 2
      const auto slope = c * (1 + 0.134145 * (b * b));
      return dy * (half + 2 * b * half * (1 - half) * slope);
    });
  } else {
    map(dx, x, dy, [](auto x, auto dy) {
      const auto density = exp(x * x * -0.5);
      constexpr double scale = 0.39894228040143267794;  // 1/√(2π)
      return dy * (normal_cdf(x, density) + x * (density * scale));
    });
  }
}

}  // namespace ebb
