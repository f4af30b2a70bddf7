#include "ebb/ops/elementwise/sqrt.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor sqrt(const Tensor& x) {
  require_floating("sqrt", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::sqrt, gpu::sqrt>(x.device(), x, y);
  return record("sqrt", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::sqrt_backward, gpu::sqrt_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::sqrt(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return sqrt(x); });
}

void cpu::sqrt_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map(dx, y, dy, [](auto y, auto dy) { return dy / (y + y); });
}

}  // namespace ebb
