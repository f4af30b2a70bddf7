#include "ebb/ops/elementwise/silu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor silu(const Tensor& x) {
  require_floating("silu", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::silu, gpu::silu>(x.device(), x, y);
  return record("silu", y, {x}, [x = Saved(x)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(x);
    run_as_is<cpu::silu_backward, gpu::silu_backward>(dy.device(), x.get(), dy, dx);
    return {dx};
  });
}

// e⁻ˣ overflows to infinity for very negative x, and x / ∞ is the right 0 there.
void cpu::silu(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return x / (1 + exp(-x)); });
}

void cpu::silu_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  map(dx, x, dy, [](auto x, auto dy) {
    const auto s = 1 / (1 + exp(-x));  // σ
    return dy * s * (1 + x * (1 - s));
  });
}

}  // namespace ebb
