#include "ebb/ops/elementwise/tanh.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor tanh(const Tensor& x) {
  require_floating("tanh", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::tanh, gpu::tanh>(x.device(), x, y);
  return record("tanh", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::tanh_backward, gpu::tanh_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::tanh(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return tanh(x); });
}

void cpu::tanh_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map(dx, y, dy, [](auto y, auto dy) { return dy * (1 - y * y); });
}

}  // namespace ebb
