#include "ebb/ops/elementwise/exp.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor exp(const Tensor& x) {
  require_floating("exp", "x", x);
  Tensor y = empty_like(x);
  run<cpu::exp_forward, gpu::exp_forward>(x.device(), x, y);
  return record("exp", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::exp_backward, gpu::exp_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::exp_forward(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "exp", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        y, [](auto x) { return exp(x); }, x);
  });
}

void cpu::exp_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double>(y.dtype(), "exp", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        dx, [](auto y, auto dy) { return y * dy; }, y, dy);
  });
}

}  // namespace ebb
