#include "ebb/ops/elementwise/tanh.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor tanh(const Tensor& x) {
  require_floating("tanh", "x", x);
  Tensor y = empty_like(x);
  run<cpu::tanh, gpu::tanh>(x.device(), x, y);
  return record("tanh", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::tanh_backward, gpu::tanh_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::tanh(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "tanh", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        y, [](auto x) { return tanh(x); }, x);
  });
}

void cpu::tanh_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double>(y.dtype(), "tanh", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        dx, [](auto y, auto dy) { return dy * (1 - y * y); }, y, dy);
  });
}

}  // namespace ebb
