#include "ebb/ops/reduction/mean.h"

#include <limits>

namespace ebb {

// A sum with a factor: NaN · 0 for the mean of nothing.
Tensor mean(const Tensor& x, const ReduceOptions& options) {
  require_floating("mean", "x", x);
  const Axes axes("mean", x.shape(), options);
  const double n = static_cast<double>(axes.count);
  return scaled_sum("mean", x, axes, n > 0 ? 1 / n : std::numeric_limits<double>::quiet_NaN());
}

}  // namespace ebb
