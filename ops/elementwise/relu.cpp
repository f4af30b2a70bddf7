#include "ebb/ops/elementwise/relu.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor relu(const Tensor& x) {
  require_floating("relu", "x", x);
  Tensor y = empty_like(x);
  run<cpu::relu, gpu::relu>(x.device(), x, y);
  return record("relu", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::relu_backward, gpu::relu_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::relu(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "relu", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        y, [](auto x) { return zero_where(x <= 0, x); }, x);
  });
}

void cpu::relu_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double>(y.dtype(), "relu", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        dx, [](auto y, auto dy) { return zero_where(y <= 0, dy); }, y, dy);
  });
}

}  // namespace ebb
