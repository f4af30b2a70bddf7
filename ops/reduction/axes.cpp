#include "ebb/ops/reduction/axes.h"

namespace ebb {

Axes::Axes(std::string_view op, const Shape& shape, const ReduceOptions& options) {
  const int rank = shape.rank();
  std::array<bool, Shape::max_rank> reduced{};
  for (const std::int64_t dim : options.dim) {
    const int d = wrap_dim(op, dim, rank);
    require(!reduced[d], Kind::value, op, text("dimension ", d, " is given twice"), dim,
            "each dimension once");
    reduced[d] = true;
  }
  std::vector<std::int64_t> dims;
  for (int d = 0; d < rank; ++d) {
    reduced[d] |= options.dim.empty();
    if (!reduced[d]) dims.push_back(shape[d]);
    if (reduced[d] && options.keepdim) dims.push_back(1);
    if (reduced[d]) count *= shape[d];
  }
  result = Shape(dims);

  std::int64_t inner = 1;  // of what is behind the run, reduced dimensions no longer in it
  for (int d = rank - 1; d >= 0;) {
    if (!reduced[d]) {
      inner *= shape[d--];
      continue;
    }
    std::int64_t n = 1;
    for (; d >= 0 && (reduced[d] || shape[d] == 1); --d) n *= shape[d];
    if (n != 1) passes.push_back({shape.product(0, d + 1), n, inner});
  }
  if (passes.empty()) passes.push_back({result.numel(), 1, 1});
}

View view_along(std::string_view op, const Shape& shape, std::int64_t dim) {
  const int d = wrap_dim(op, dim, shape.rank());
  if (shape.rank() == 0) return {};
  return {shape.product(0, d), shape[d], shape.product(d + 1, shape.rank())};
}

}  // namespace ebb
