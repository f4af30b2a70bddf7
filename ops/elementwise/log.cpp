#include "ebb/ops/elementwise/log.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor log(const Tensor& x) {
  require_floating("log", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::log, gpu::log>(x.device(), x, y);
  return record("log", y, {x}, [x = Saved(x)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::log_backward, gpu::log_backward>(dy.device(), x.get(), dy, dx);
    return {dx};
  });
}

void cpu::log(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) { return log(x); });
}

void cpu::log_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  map(dx, x, dy, [](auto x, auto dy) { return dy / x; });
}

}  // namespace ebb
