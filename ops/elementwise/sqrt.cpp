#include "ebb/ops/elementwise/sqrt.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor sqrt(const Tensor& x) {
  require_floating("sqrt", "x", x);
  Tensor y = empty_like(x);
  run<cpu::sqrt, gpu::sqrt>(x.device(), x, y);
  return record("sqrt", y, {x}, [y = Saved(y)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::sqrt_backward, gpu::sqrt_backward>(dy.device(), y.get(), dy, dx);
    return {dx};
  });
}

void cpu::sqrt(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "sqrt", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        y, [](auto x) { return sqrt(x); }, x);
  });
}

void cpu::sqrt_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double>(y.dtype(), "sqrt", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        dx, [](auto y, auto dy) { return dy / (y + y); }, y, dy);
  });
}

}  // namespace ebb
