#include "ebb/ops/reduction/l2_norm.h"

#include "ebb/ops/columns.cuh"
#include "ebb/ops/slices.cuh"
#include "ebb/ops/strided_rows.cuh"

namespace ebb {
namespace gpu {
namespace {

template <class T>
struct Root {
  T* y;
  __device__ void operator()(std::int64_t row, double total) const {
    y[row] = narrow<T>(static_cast<Compute<T>>(sqrt(total)));
  }
  __device__ void operator()(std::int64_t column, const double (&sum)[1]) const {
    (*this)(column, sum[0]);
  }
};

struct SquareTerm {
  struct Column {
    template <class Rows>
    __device__ void add(const Rows& rows, double (&sum)[1]) const {
      rows.each([&](auto x) { sum[0] += static_cast<double>(x) * static_cast<double>(x); });
    }
  };
  __device__ Column column(std::int64_t) const { return {}; }
};

// A slice of a line along v.n; `slices` of them have the same norm.
template <class T>
struct NormGradient {
  using C = Compute<T>;
  std::int64_t slices;
  std::int64_t inner;
  const T* y;
  const T* dy;
  T* dx;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t place = row.index() / inner;
    const std::int64_t line = row.index() - (place - place / slices) * inner;
    const C norm = widen(y[line]);
    const C up = widen(dy[line]);
    row.write(dx, [=](auto, C x) { return norm == 0 ? C(0) : x / norm * up; });
  }
};

}  // namespace
}  // namespace gpu

void gpu::l2_norm(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "l2_norm", [&](auto zero) {
    using T = decltype(zero);
    const Root<T> root{y.data<T>()};
    if (v.inner == 1)
      return sum_slices<T>("l2_norm", Square{}, root, v.outer, v.n, x.device(), x.data<T>());
    columns<T, 1, true>("l2_norm", SquareTerm{}, root, {v.outer, v.n, v.inner}, x.device(),
                        x.data<T>());
  });
}

void gpu::l2_norm_backward(const Tensor& x, const Tensor& y, const Tensor& dy, const View& v,
                           Tensor& dx) {
  if (x.numel() == 0) return;
  visit<float, double, bf16>(x.dtype(), "l2_norm", [&](auto zero) {
    using T = decltype(zero);
    const auto body = [&](std::int64_t slices) {
      return NormGradient<T>{slices, v.inner, y.data<T>(), dy.data<T>(), dx.data<T>()};
    };
    if (v.inner == 1) {
      const RowLayout layout = slice_rows(v.outer, v.n);
      return stream_rows<T>("l2_norm", body(layout.slices), layout, x.data<T>());
    }
    const LineLayout layout = slice_lines(v.outer, v.n, v.inner);
    strided_rows<T>("l2_norm", body(layout.slices), layout, x.device(), x.data<T>());
  });
}

}  // namespace ebb
