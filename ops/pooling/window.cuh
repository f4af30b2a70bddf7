// What the pooling kernels share: who computes which element, and which windows see an input.
#pragma once
#include <algorithm>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/pooling/window.h"

namespace ebb::gpu {

inline constexpr int pool_threads = 256;

inline unsigned pool_blocks(std::int64_t items) {
  constexpr std::int64_t most = 1 << 22;
  return static_cast<unsigned>(std::min(divide_up<std::int64_t>(items, pool_threads), most));
}

// Calls f(plane, row, column, i) for the thread's share of planes × rows × columns. Index is 32
// bits wide where that is enough, because its divisions are.
template <class Index, class F>
__device__ void for_places(std::int64_t planes, std::int64_t rows, std::int64_t columns,
                           const F& f) {
  const auto size = static_cast<Index>(planes * rows * columns);
  const auto h = static_cast<Index>(rows);
  const auto w = static_cast<Index>(columns);
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < size; i += stride) {
    const Index line = i / w;
    const Index plane = line / h;
    f(static_cast<std::int64_t>(plane), static_cast<std::int64_t>(line - plane * h),
      static_cast<std::int64_t>(i - line * w), static_cast<std::int64_t>(i));
  }
}

// Whether 32 bits can count the elements, with room for the stride of a grid.
inline bool is_small(const PoolSize& s) {
  return s.planes * std::max(s.h * s.w, s.p * s.q) < (std::int64_t{1} << 31);
}

// Windows [first, last] along one side that may see place x: with dilation some of them step over.
struct Seen {
  std::int64_t first, last;
  __device__ Seen(std::int64_t x, std::int64_t kernel, std::int64_t stride, std::int64_t padding,
                  std::int64_t dilation, std::int64_t windows) {
    const std::int64_t reach = x + padding - (kernel - 1) * dilation;
    first = reach > 0 ? (reach + stride - 1) / stride : 0;
    last = (x + padding) / stride;
    if (last >= windows) last = windows - 1;
  }
};

// 2 × 2 windows side by side over even rows, without padding: `outputs` of them make one vector of
// each of the two input rows. 0 when the vectors would not fit or not be aligned.
template <class T>
int adjacent_outputs(const PoolSize& s, const void* x, const void* y) {
  if (s.w != 2 * s.q) return 0;
  const auto bits = reinterpret_cast<std::uintptr_t>(x) | reinterpret_cast<std::uintptr_t>(y);
  if (bits % 16 != 0) return 0;
  return s.w % pack_size<T> == 0 ? std::max(pack_size<T> / 2, 1) : 1;
}

}  // namespace ebb::gpu
