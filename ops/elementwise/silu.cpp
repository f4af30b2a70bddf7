#include "ebb/ops/elementwise/silu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor silu(const Tensor& x) {
  require_floating("silu", "x", x);
  Tensor y = empty_like(x);
  run<cpu::silu, gpu::silu>(x.device(), x, y);
  return record("silu", y, {x}, [x = Saved(x)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(x);
    run<cpu::silu_backward, gpu::silu_backward>(dy.device(), x.get(), dy, dx);
    return {dx};
  });
}

// e⁻ˣ overflows to infinity for very negative x, and x / ∞ is the right 0 there.
void cpu::silu(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "silu", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        y, [](auto x) { return x / (1 + exp(-x)); }, x);
  });
}

void cpu::silu_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  visit<float, double>(x.dtype(), "silu", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        dx,
        [](auto x, auto dy) {
          const auto s = 1 / (1 + exp(-x));  // σ
          return dy * s * (1 + x * (1 - s));
        },
        x, dy);
  });
}

}  // namespace ebb
