#include "ebb/ops/shape/concat.h"

#include "ebb/ops/shape/runs.h"

namespace ebb {
namespace {

// The shape of the whole.
Shape check(std::span<const Tensor> xs, std::int64_t dim, int* at) {
  require(!xs.empty(), Kind::value, "concat", "nothing to put together", "0 tensors", "1 or more");
  require_defined("concat", "tensor 0", xs[0]);
  const Shape& first = xs[0].shape();
  require(first.rank() > 0, Kind::shape, "concat", "a scalar has no dimension", first,
          "rank 1 or more");
  *at = wrap_dim("concat", dim, first.rank());
  std::int64_t sum = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    require_alike("concat", "tensor 0", xs[0], "tensor " + std::to_string(i), xs[i]);
    const Shape& shape = xs[i].shape();
    require(shape.rank() == first.rank() && shape.with(*at, 0) == first.with(*at, 0), Kind::shape,
            "concat", text("tensor ", i, " does not fit tensor 0"), text(shape, " and ", first),
            text("equal extents but for dimension ", *at));
    require(!__builtin_add_overflow(sum, shape[*at], &sum), Kind::limit, "concat",
            "extents overflow", shape, "at most 2^63 - 1");
  }
  return first.with(*at, sum);
}

}  // namespace

Tensor concat(std::span<const Tensor> xs, std::int64_t dim) {
  int at = 0;
  const Shape shape = check(xs, dim, &at);
  const std::int64_t outer = shape.product(0, at);
  const std::int64_t inner = shape.product(at + 1, shape.rank());
  const std::int64_t step = shape[at] * inner;
  Tensor y = empty(shape, xs[0].options());
  struct Part {
    Shape shape;
    Runs runs;
    bool needed;
  };
  std::vector<Part> parts;
  std::int64_t start = 0;
  for (const Tensor& x : xs) {
    const std::int64_t length = x.shape()[at] * inner;
    const Runs runs{outer, length, 0, length, start, step};
    run_as_is<cpu::copy_runs, gpu::copy_runs>(y.device(), "concat", runs, x, y);
    parts.push_back({x.shape(), runs, x.requires_grad()});
    start += length;
  }
  return record("concat", y, xs, [parts = std::move(parts)](const Tensor& dy) -> Gradients {
    Gradients gradients;
    for (const auto& [shape, r, needed] : parts) {
      Tensor dx;
      if (needed) {
        dx = empty(shape, dy.options());
        const Runs back{r.count, r.length, r.y_start, r.y_step, r.x_start, r.x_step};
        run_as_is<cpu::copy_runs, gpu::copy_runs>(dy.device(), "concat", back, dy, dx);
      }
      gradients.push_back(dx);
    }
    return gradients;
  });
}

}  // namespace ebb
