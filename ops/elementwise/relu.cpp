#include "ebb/ops/elementwise/relu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor relu(const Tensor& x) {
  require_floating("relu", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::relu, gpu::relu>(x.device(), x, y);
  return record("relu", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::relu_backward, gpu::relu_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::relu(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return zero_where(x <= 0, x); });
}

void cpu::relu_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map(dx, y, dy, [](auto y, auto dy) { return zero_where(y <= 0, dy); });
}

}  // namespace ebb
