#include "ebb/ops/columns.cuh"
#include "ebb/ops/reduction/sum.h"
#include "ebb/ops/slices.cuh"

namespace ebb {
namespace gpu {
namespace {

// The sum is a Y (f32 for bf16) before it is scaled, so that a mean overflows where its sum does.
template <class Y>
__device__ Y scaled(double sum, double factor) {
  using C = Compute<Y>;
  return narrow<Y>(static_cast<C>(factor * static_cast<double>(static_cast<C>(sum))));
}

template <class Y>
struct Total {
  double factor;
  Y* y;

  __device__ void operator()(std::int64_t i, double sum) const { y[i] = scaled<Y>(sum, factor); }
  __device__ void operator()(std::int64_t i, const double (&sum)[1]) const { (*this)(i, sum[0]); }
};

template <class T, class Y>
void sum_any(const Tensor& x, const View& v, double factor, Tensor& y) {
  const Total<Y> total{factor, y.data<Y>()};
  if (v.inner == 1)
    return sum_slices<T>("sum", Same{}, total, v.outer, v.n, x.device(), x.data<T>());
  columns<T, 1, true>("sum", InputSums<Compute<T>>{}, total, {v.outer, v.n, v.inner}, x.device(),
                      x.data<T>());
}

constexpr int repeat_threads = 256;
constexpr int repeat_packs = 4;  // of 16 bytes that a thread writes

// The pack of dx that begins at `first`, wherever its elements come from; `left` are in dx.
template <class T, class Index>
__device__ Pack<T, pack_size<T>> repeat_any(const T* dy, Index first, Index n, Index inner,
                                            Compute<T> factor, Index left) {
  const Index row = first / inner;
  Index o = row / n;
  Index k = row - o * n;
  Index i = first - row * inner;
  Pack<T, pack_size<T>> out;
#pragma unroll
  for (int j = 0; j < pack_size<T>; ++j) {
    if (j < left) out.v[j] = narrow<T>(factor * widen(dy[o * inner + i]));
    if (++i == inner) i = 0, ++k;
    if (k == n) k = 0, ++o;
  }
  return out;
}

// Index is 32 bits wide where that suffices, for the divisions. `packed`: no pack of dx crosses a
// line of n, or of inner when that is not 1.
template <class T, class Index>
__global__ void __launch_bounds__(repeat_threads)
    repeat_kernel(const T* dy, Index n, Index inner, double factor, Index total, bool packed,
                  T* dx) {
  constexpr int width = pack_size<T>;
  using C = Compute<T>;
  using P = Pack<T, width>;
  const C by = static_cast<C>(factor);
  const Index start = static_cast<Index>(blockIdx.x) * (repeat_threads * repeat_packs * width);
#pragma unroll
  for (int p = 0; p < repeat_packs; ++p) {
    const Index first = start + static_cast<Index>(p * repeat_threads + threadIdx.x) * width;
    if (first >= total) return;
    P out;
    if (packed && inner == 1) {
      const T same = narrow<T>(by * widen(dy[first / n]));
#pragma unroll
      for (int j = 0; j < width; ++j) out.v[j] = same;
    } else if (packed) {
      const Index row = first / inner;
      const P in = *reinterpret_cast<const P*>(dy + row / n * inner + (first - row * inner));
#pragma unroll
      for (int j = 0; j < width; ++j) out.v[j] = narrow<T>(by * widen(in.v[j]));
    } else {
      out = repeat_any<T>(dy, first, n, inner, by, total - first);
    }
    if (packed || total - first >= width) {
      store(reinterpret_cast<P*>(dx + first), out);
      continue;
    }
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (j < total - first) dx[first + j] = out.v[j];
  }
}

template <class T, class Index>
void repeat(const Tensor& dy, const View& v, double factor, Tensor& dx) {
  constexpr int width = pack_size<T>;
  const bool packed = (v.inner == 1 ? v.n : v.inner) % width == 0;
  const std::int64_t blocks =
      divide_up<std::int64_t>(dx.numel(), repeat_threads * repeat_packs * width);
  launch("sum", repeat_kernel<T, Index>, dim3(static_cast<unsigned>(blocks)), repeat_threads, 0,
         dy.data<T>(), v.n, v.inner, factor, dx.numel(), packed, dx.data<T>());
}

}  // namespace
}  // namespace gpu

void gpu::sum_along(const Tensor& x, const View& v, double factor, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    if (y.dtype() == x.dtype()) return sum_any<T, T>(x, v, factor, y);
    if constexpr (std::is_same_v<T, float>) return sum_any<T, bf16>(x, v, factor, y);
    sum_any<T, float>(x, v, factor, y);
  });
}

void gpu::repeat_along(const Tensor& dy, const View& v, double factor, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    constexpr std::int64_t small = std::int64_t{1} << 30;
    if (dx.numel() < small) return repeat<T, std::int32_t>(dy, v, factor, dx);
    repeat<T, std::int64_t>(dy, v, factor, dx);
  });
}

}  // namespace ebb
