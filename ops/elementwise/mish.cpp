#include "ebb/ops/elementwise/mish.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor mish(const Tensor& x) {
  require_floating("mish", "x", x);
  Tensor y = empty_like(x);
  run_as_is<cpu::mish, gpu::mish>(x.device(), x, y);
  return record("mish", y, {x}, [x = Saved(x)](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::mish_backward, gpu::mish_backward>(dy.device(), x.get(), dy, dx);
    return {dx};
  });
}

void cpu::mish(const Tensor& x, Tensor& y) {
  map(y, x, [](auto x) {
    const auto u = exp(select(20 < x, 20, x));
    const auto w = u * (u + 2);
    return x * (w / (w + 2));
  });
}

void cpu::mish_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  map(dx, x, dy, [](auto x, auto dy) {
    const auto c = select(20 < x, 20, x);
    const auto u = exp(c);
    const auto w = u * (u + 2);
    const auto d = w + 2;
    return dy * ((w + 4 * u * (u + 1) * c / d) / d);
  });
}

}  // namespace ebb
