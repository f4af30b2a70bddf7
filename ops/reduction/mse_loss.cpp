#include "ebb/ops/reduction/mse_loss.h"

#include <limits>

#include "ebb/ops/map.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor mse_loss(const Tensor& x, const Tensor& target, MseLossOptions options) {
  require_floating("mse_loss", "x", x);
  require_alike("mse_loss", "x", x, "target", target);
  require_shape("mse_loss", "target", target, x.shape());
  const bool each = options.reduction == Reduction::none;
  const double n = static_cast<double>(x.numel());
  double factor = 1;
  if (options.reduction == Reduction::mean)
    factor = n > 0 ? 1 / n : std::numeric_limits<double>::quiet_NaN();
  Tensor y = empty(each ? x.shape() : Shape{}, x.options());
  run_as_is<cpu::mse_loss, gpu::mse_loss>(x.device(), x, target, factor, each, y);
  return record("mse_loss", y, {x, target},
                [x = Saved(x), t = Saved(target), factor, each, needs_x = x.requires_grad(),
                 needs_t = target.requires_grad()](const Tensor& dy) -> Gradients {
                  const auto gradient = [&](double sign) {
                    Tensor d = empty_like(x);
                    run_as_is<cpu::mse_loss_backward, gpu::mse_loss_backward>(
                        dy.device(), x.get(), t.get(), dy, sign * 2 * factor, each, d);
                    return d;
                  };
                  return {needs_x ? gradient(1) : Tensor(), needs_t ? gradient(-1) : Tensor()};
                });
}

void cpu::mse_loss(const Tensor& x, const Tensor& target, double factor, bool each, Tensor& y) {
  if (each) {
    return map(y, x, target, [](auto x, auto t) {
      const auto d = x - t;
      return d * d;
    });
  }
  visit<float, double, bf16>(x.dtype(), "mse_loss", [&](auto zero) {
    using T = decltype(zero);
    const auto part = [a = x.data<T>(), b = target.data<T>()](auto begin, auto end) {
      const auto square = [](auto a, auto b) { return (a - b) * (a - b); };
      return sum_row<T>(end - begin, square, a + begin, b + begin);
    };
    *y.data<T>() = T(Wide<T>(factor * block_sum<double>(x.numel(), 1 << 16, part)));
  });
}

void cpu::mse_loss_backward(const Tensor& x, const Tensor& target, const Tensor& dy, double factor,
                            bool each, Tensor& dx) {
  if (each)
    map(dx, x, target, dy, [=](auto x, auto t, auto dy) { return factor * (x - t) * dy; });
  else
    map(dx, x, target, [g = factor * dy.item()](auto x, auto t) { return g * (x - t); });
}

}  // namespace ebb
