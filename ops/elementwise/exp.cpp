#include "ebb/ops/elementwise/exp.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor exp(const Tensor& x) {
  require_floating("exp", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::exp_forward, gpu::exp_forward>(x.device(), x, y);
  return record("exp", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::exp_backward, gpu::exp_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::exp_forward(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return exp(x); });
}

void cpu::exp_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map(dx, y, dy, [](auto y, auto dy) { return y * dy; });
}

}  // namespace ebb
