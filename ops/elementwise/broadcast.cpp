#include "ebb/ops/elementwise/broadcast.h"

#include <array>

#include "ebb/ops/reduction/sum.h"

namespace ebb {
namespace {

// Extent of `shape` at dimension d of a result of that rank, aligned at the right.
std::int64_t extent(const Shape& shape, int d, int rank) {
  const int own = d - (rank - shape.rank());
  return own < 0 ? 1 : shape[own];
}

std::array<std::int64_t, Shape::max_rank> strides(const Shape& shape, int rank) {
  std::array<std::int64_t, Shape::max_rank> stride{};
  std::int64_t step = 1;
  for (int d = rank - 1; d >= 0; --d) {
    const std::int64_t n = extent(shape, d, rank);
    stride[d] = n == 1 ? 0 : step;
    step *= n;
  }
  return stride;
}

}  // namespace

Layout::Layout(const Shape& y, const Shape& a_shape, const Shape& b_shape) {
  const auto sa = strides(a_shape, y.rank());
  const auto sb = strides(b_shape, y.rank());
  for (int d = 0; d < y.rank(); ++d) {
    if (y[d] == 1) continue;
    if (rank > 0 && a[rank - 1] == sa[d] * y[d] && b[rank - 1] == sb[d] * y[d]) {
      dims[rank - 1] *= y[d];
      a[rank - 1] = sa[d];
      b[rank - 1] = sb[d];
    } else {
      dims[rank] = y[d];
      a[rank] = sa[d];
      b[rank] = sb[d];
      ++rank;
    }
  }
}

bool Layout::lies_like_y(const std::int64_t* strides) const {
  std::int64_t step = 1;
  for (int d = rank - 1; d >= 0; step *= dims[d--])
    if (strides[d] != step) return false;
  return true;
}

Periodic::Periodic(const Layout& l) {
  first = !l.lies_like_y(l.a);
  if (first && !l.lies_like_y(l.b)) return;
  const std::int64_t* repeated = first ? l.a : l.b;
  int d = l.rank - 1;  // from the right: [repeats] once through the operand [repeats]
  if (d >= 0 && repeated[d] == 0) inner = l.dims[d--];
  if (d >= 0 && repeated[d] != 0) period = l.dims[d--];
  if (d >= 0 && repeated[d] == 0) --d;
  found = d < 0;
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  const int rank = x.rank();
  const auto kept = [&](int d) { return extent(shape, d, rank) == x.shape()[d]; };
  Tensor sum = x;
  std::int64_t inner = 1;
  for (int d = rank - 1; d >= 0;) {
    if (kept(d)) {
      inner *= x.shape()[d--];
      continue;
    }
    std::int64_t count = 1;
    while (d >= 0 && (!kept(d) || x.shape()[d] == 1)) count *= x.shape()[d--];
    const std::int64_t outer = x.shape().product(0, d + 1);
    bool last = true;
    for (int e = 0; e <= d; ++e) last = last && kept(e);
    const Dtype dtype = x.dtype() == Dtype::bf16 && !last ? Dtype::f32 : x.dtype();
    Tensor y = empty({outer, inner}, {dtype, x.device()});
    run_as_is<cpu::sum_along, gpu::sum_along>(x.device(), sum, View{outer, count, inner}, 1.0, y);
    sum = y;
  }
  return Tensor(sum.storage(), shape, sum.dtype());
}

}  // namespace ebb
