#include "ebb/ops/elementwise/log.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor log(const Tensor& x) {
  require_floating("log", "x", x);
  Tensor y = empty_like(x);
  run<cpu::log, gpu::log>(x.device(), x, y);
  return record("log", y, {x}, [x = Saved(x)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::log_backward, gpu::log_backward>(dy.device(), x.get(), dy, dx);
    return {dx};
  });
}

void cpu::log(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "log", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        y, [](auto x) { return log(x); }, x);
  });
}

void cpu::log_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  visit<float, double>(x.dtype(), "log", [&](auto zero) {
    using T = decltype(zero);
    map<T>(
        dx, [](auto x, auto dy) { return dy / x; }, x, dy);
  });
}

}  // namespace ebb
