#include "ebb/ops/reduction/max.h"
#include "ebb/ops/slices.cuh"
#include "ebb/ops/strided_rows.cuh"

namespace ebb {
namespace gpu {
namespace {

struct Earliest {
  __device__ std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a < b ? a : b; }
};

// One read of the row: each thread keeps its first largest element, and of the threads that hold
// the row's largest the earliest wins. Columns of a slice are counted from its start.
template <class T>
struct MaxRow {
  T* y;
  std::int32_t* index;          // or null
  const std::int32_t* earlier;  // [rows, cols]: the index of each x, when x are maxima of slices
  std::int64_t cols;
  std::int64_t slices;
  std::int64_t chunk;

  template <class Row>
  __device__ void operator()(Row& row) const {
    using C = Compute<T>;
    constexpr std::int64_t nowhere = std::numeric_limits<std::int64_t>::max();
    C best = -std::numeric_limits<C>::infinity();
    std::int64_t at = nowhere;
    row.each([&](auto col, C x) {
      if (!(x > best || (x != x && best == best) || at == nowhere)) return;
      best = x;
      at = col;
    });
    const C largest = row.reduce(Max{}, best);
    const bool mine = best == largest || (best != best && largest != largest);
    const std::int64_t first = row.reduce(Earliest{}, mine ? at : nowhere);
    if (!row.leader()) return;
    const std::int64_t r = row.index();
    y[r] = narrow<T>(largest);
    if (!index) return;
    index[r] =
        earlier ? earlier[r * cols + first] : static_cast<std::int32_t>(first + r % slices * chunk);
  }
};

// Few rows are cut into slices, whose maxima are rows of a second stage.
template <class T>
void max_rows(const Tensor& x, const View& v, std::int32_t* index, Tensor& y) {
  const RowLayout layout = slice_rows(v.outer, v.n);
  if (layout.slices == 1)
    return stream_rows<T>("max", MaxRow<T>{y.data<T>(), index, nullptr, v.n, 1, v.n}, layout,
                          x.data<T>());
  Tensor partial = empty({v.outer, layout.slices}, x.options());
  Tensor place;
  if (index) place = empty({v.outer, layout.slices}, {Dtype::i32, x.device()});
  std::int32_t* places = index ? place.data<std::int32_t>() : nullptr;
  T* maxima = partial.data<T>();
  stream_rows<T>("max", MaxRow<T>{maxima, places, nullptr, v.n, layout.slices, layout.chunk},
                 layout, x.data<T>());
  stream_rows<T>("max", MaxRow<T>{y.data<T>(), index, places, layout.slices, 1, layout.slices},
                 {v.outer, layout.slices}, static_cast<const T*>(maxima));
}

template <class T>
__global__ void place_kernel(const std::int32_t* index, const T* dy, std::int64_t kept,
                             std::int64_t n, std::int64_t inner, T* dx) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= kept) return;
  const std::int64_t o = i / inner;
  dx[(o * n + index[i]) * inner + i - o * inner] = dy[i];
}

}  // namespace
}  // namespace gpu

void gpu::max_along(const Tensor& x, const View& v, Tensor& index, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "max", [&](auto zero) {
    using T = decltype(zero);
    std::int32_t* places = index.defined() ? index.data<std::int32_t>() : nullptr;
    if (v.inner == 1) return max_rows<T>(x, v, places, y);
    strided_rows<T>("max", MaxRow<T>{y.data<T>(), places, nullptr, v.n, 1, v.n}, v.outer, v.n,
                    v.inner, x.data<T>());
  });
}

void gpu::place_along(const Tensor& index, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "max", [&](auto zero) {
    using T = decltype(zero);
    constexpr int threads = 256;
    launch("max", place_kernel<T>,
           dim3(static_cast<unsigned>(divide_up<std::int64_t>(v.kept(), threads))), threads, 0,
           index.data<std::int32_t>(), dy.data<T>(), v.kept(), v.n, v.inner, dx.data<T>());
  });
}

}  // namespace ebb
