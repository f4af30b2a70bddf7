#include "ebb/ops/elementwise/broadcast.h"

#include <array>

#include "ebb/core/eigen.h"
#include "ebb/core/parallel.h"

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

Periodic::Periodic(const Layout& l) {
  const auto whole = [&](const std::int64_t* stride) {
    std::int64_t step = 1;
    for (int d = l.rank - 1; d >= 0; step *= l.dims[d--])
      if (stride[d] != step) return false;
    return true;
  };
  first = !whole(l.a);
  if (first && !whole(l.b)) return;
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
    run<cpu::sum_middle, gpu::sum_middle>(x.device(), sum, outer, count, inner, y);
    sum = y;
  }
  return Tensor(sum.storage(), shape, sum.dtype());
}

namespace {

constexpr std::int64_t block = 1024;  // numbers that are added up in f32

template <class T>
void sum_rows(const T* x, std::int64_t outer, std::int64_t count, T* y) {
  const auto part = [&](const T* row, std::int64_t begin, std::int64_t end) -> double {
    return begin == end ? T(0) : cpu::array(row + begin, end - begin).sum();
  };
  const std::int64_t grain =
      std::max<std::int64_t>(1, (1 << 15) / std::max<std::int64_t>(count, 1));
  parallel_for(outer, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* row = x + r * count;
      y[r] = static_cast<T>(count <= block ? part(row, 0, count)
                                           : block_sum<double>(count, block, [&](auto b, auto e) {
                                               return part(row, b, e);
                                             }));
    }
  });
}

// Columns: blocks of rows are added up in double, the blocks in order.
template <class T>
void sum_columns(const T* x, std::int64_t outer, std::int64_t count, std::int64_t inner, T* y) {
  constexpr std::int64_t rows = 512;
  const std::int64_t blocks = std::max<std::int64_t>(1, (count + rows - 1) / rows);
  std::vector<double> partial(static_cast<size_t>(outer * blocks * inner));
  const std::int64_t grain = std::max<std::int64_t>(
      1, (1 << 15) / (std::min(rows, count + 1) * std::max<std::int64_t>(inner, 1)));
  parallel_for(outer * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      auto sum = cpu::array(partial.data() + k * inner, inner);
      const std::int64_t first = k % blocks * rows;
      for (std::int64_t r = first; r < std::min(first + rows, count); ++r)
        sum += cpu::array(x + (k / blocks * count + r) * inner, inner).template cast<double>();
    }
  });
  for (std::int64_t o = 0; o < outer; ++o) {
    auto sum = cpu::array(partial.data() + o * blocks * inner, inner);
    for (std::int64_t k = 1; k < blocks; ++k)
      sum += cpu::array(partial.data() + (o * blocks + k) * inner, inner);
    cpu::array(y + o * inner, inner) = sum.template cast<T>();
  }
}

}  // namespace

void cpu::sum_middle(const Tensor& x, std::int64_t outer, std::int64_t count, std::int64_t inner,
                     Tensor& y) {
  visit<float, double>(x.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    if (inner == 1) {
      sum_rows(x.data<T>(), outer, count, y.data<T>());
    } else {
      sum_columns(x.data<T>(), outer, count, inner, y.data<T>());
    }
  });
}

}  // namespace ebb
