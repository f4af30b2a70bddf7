#include "ebb/ops/shape/slice.h"

#include <algorithm>

#include "ebb/ops/shape/runs.h"

namespace ebb {

Tensor slice(const Tensor& x, std::int64_t dim, std::int64_t start, std::int64_t end) {
  require_defined("slice", "x", x);
  require(x.rank() > 0, Kind::shape, "slice", "a scalar has no dimension", x.shape(),
          "rank 1 or more");
  const int at = wrap_dim("slice", dim, x.rank());
  const std::int64_t extent = x.shape()[at];
  const auto bound = [&](std::int64_t i) {
    return std::clamp<std::int64_t>(i < 0 ? i + extent : i, 0, extent);
  };
  const std::int64_t first = bound(start);
  const std::int64_t length = std::max<std::int64_t>(bound(end) - first, 0);
  const std::int64_t inner = x.shape().product(at + 1, x.rank());
  const Runs runs{
      x.shape().product(0, at), length * inner, first * inner, extent * inner, 0, length * inner};
  Tensor y = empty(x.shape().with(at, length), x.options());
  run_as_is<cpu::copy_runs, gpu::copy_runs>(x.device(), "slice", runs, x, y);
  return record("slice", y, {x}, [runs, shape = x.shape()](const Tensor& dy) -> Gradients {
    Tensor dx = zeros(shape, dy.options());
    const Runs back{runs.count, runs.length, 0, runs.y_step, runs.x_start, runs.x_step};
    run_as_is<cpu::copy_runs, gpu::copy_runs>(dy.device(), "slice", back, dy, dx);
    return {dx};
  });
}

}  // namespace ebb
