#include "ebb/ops/reduction/max.h"
#include "ebb/ops/slices.cuh"
#include "ebb/ops/strided_rows.cuh"

namespace ebb {
namespace gpu {
namespace {

struct Earliest {
  __device__ std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a < b ? a : b; }
};

// One read of the line: each thread keeps its first largest element, and of the threads that hold
// the line's largest the earliest wins. Places in a slice are counted from its start.
template <class T>
struct MaxRow {
  T* y;
  std::int32_t* index;          // or null
  const std::int32_t* earlier;  // the index of each x, when x are maxima of slices
  LineLayout s;

  template <class Row>
  __device__ void operator()(Row& row) const {
    using C = Compute<T>;
    constexpr auto nowhere = std::numeric_limits<std::int32_t>::max();
    C best = -std::numeric_limits<C>::infinity();
    std::int32_t at = nowhere;
    row.each([&](auto col, C x) {
      if (!(x > best || (x != x && best == best) || at == nowhere)) return;
      best = x;
      at = static_cast<std::int32_t>(col);
    });
    const C largest = row.reduce(Max{}, best);
    const bool mine = best == largest || (best != best && largest != largest);
    const std::int32_t first = row.reduce(Earliest{}, mine ? at : nowhere);
    if (!row.leader()) return;
    const std::int64_t r = row.index();
    y[r] = narrow<T>(largest);
    if (!index) return;
    const std::int64_t line = r / s.inner;
    index[r] = earlier ? earlier[(line * s.n + first) * s.inner + r - line * s.inner]
                       : static_cast<std::int32_t>(first + line % s.slices * s.chunk);
  }
};

template <class T>
void max_slices(const MaxRow<T>& body, Device device, const T* x) {
  constexpr std::int64_t longest = 4096;  // that is faster held than read by few threads
  const LineLayout& s = body.s;
  if (s.inner != 1) return strided_rows<T>("max", body, s, device, x);
  if (s.slices == 1 && s.n <= longest) return keep_rows<T>("max", body, s.outer, s.n, x);
  stream_rows<T>("max", body, {s.outer, s.n, s.slices, s.chunk}, x);
}

LineLayout max_layout(const View& v) {
  if (v.inner != 1) return slice_lines(v.outer, v.n, v.inner);
  const RowLayout rows = slice_rows(v.outer, v.n);
  return {v.outer, v.n, 1, rows.slices, rows.chunk};
}

// Few lines are cut into slices, whose maxima are lines of a second stage.
template <class T>
void max_lines(const Tensor& x, const View& v, std::int32_t* index, Tensor& y) {
  const LineLayout s = max_layout(v);
  const auto go = [&](const MaxRow<T>& body, const T* from) { max_slices(body, x.device(), from); };
  if (s.slices == 1) return go(MaxRow<T>{y.data<T>(), index, nullptr, s}, x.data<T>());
  Tensor partial = empty({s.slices, s.lines()}, x.options()), place;
  if (index) place = empty(partial.shape(), {Dtype::i32, x.device()});
  std::int32_t* const places = index ? place.data<std::int32_t>() : nullptr;
  T* const maxima = partial.data<T>();
  go(MaxRow<T>{maxima, places, nullptr, s}, x.data<T>());
  go(MaxRow<T>{y.data<T>(), index, places, {s.outer, s.slices, s.inner}}, maxima);
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
    max_lines<T>(x, v, places, y);
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
