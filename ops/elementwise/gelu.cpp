#include "ebb/ops/elementwise/gelu.h"

#include "ebb/ops/elementwise/normal_tail.h"
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

// Φ(−size), as exactly as results of type T keep it.
template <class W, class T = W>
cpu::Simd<W> normal_tail(cpu::Simd<W> size, cpu::Simd<W> bell, T = {}) {
  constexpr NormalTail<T> of;
  const auto t = cpu::inverse<T>(1 + size * of.slope);
  const auto u = fma(t, cpu::Simd<W>(2), cpu::Simd<W>(-1));
  return cpu::polynomial(u, of.q) * t * bell;
}

}  // namespace

void cpu::gelu(const Tensor& x, bool approximate, Tensor& y) {
  if (approximate)
    map(y, x, [](auto x) { return x / (1 + exp(-2 * tanh_argument(x))); });
  else
    map(y, x, [](auto type, auto x) {
      const auto size = clamp(abs(x), 0, most);
      return fma(-size, normal_tail(size, bell(size), type), zero_where(x < 0, x));
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
      const auto tail = normal_tail(abs(b), e);
      return dy * (select(x < 0, tail, 1 - tail) + b * e * scale);
    });
  }
}

}  // namespace ebb
