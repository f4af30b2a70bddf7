#include "ebb/ops/elementwise/sigmoid.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor sigmoid(const Tensor& x) {
  require_floating("sigmoid", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::sigmoid, gpu::sigmoid>(x.device(), x, y);
  return record("sigmoid", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::sigmoid_backward, gpu::sigmoid_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

// e⁻ˣ overflows to infinity for very negative x, and 1 / ∞ is the right 0 there.
void cpu::sigmoid(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return 1 / (1 + exp(-x)); });
}

void cpu::sigmoid_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map(dx, y, dy, [](auto y, auto dy) { return dy * y * (1 - y); });
}

}  // namespace ebb
