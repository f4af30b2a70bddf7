// How a group of threads shares a row of up to group · packs · 16 bytes that stays in registers:
// packs of 16 bytes side by side, or single elements where rows are not aligned.
//
//   const Lanes<T, 32, 4> lanes{cols, lane, packed};
//   auto x = lanes.load(row, k);                                          // pack k of a row
//   if (lanes.has(k, j)) … widen(x.v[j]) …                                // column lanes.at(k, j)
//
// For kernels that hold several rows at once, or what belongs to columns, beside their rows;
// ops/rows.cuh is simpler where a row is all that a body needs.
#pragma once
#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

template <class T, int group, int packs>
struct Lanes {
  static constexpr int width = pack_size<T>;
  static constexpr int columns = group * packs * width;  // that it holds
  using P = Pack<T, width>;
  using C = Compute<T>;
  int cols;
  int lane;
  bool packed;  // rows begin at 16 bytes and cols is a multiple of the width

  __device__ int at(int k, int j) const {
    return k * (group * width) + (packed ? lane * width + j : j * group + lane);
  }
  __device__ bool has(int k, int j) const { return at(k, j) < cols; }

  // Pack k of the row at p, 0 beyond its end; `otherwise` everywhere when there is no row.
  __device__ P load(const T* p, int k, C otherwise = 0) const {
    P pack;
    if (packed && p && has(k, 0)) return *reinterpret_cast<const P*>(p + at(k, 0));
#pragma unroll
    for (int j = 0; j < width; ++j) {
      pack.v[j] = narrow<T>(p ? C(0) : otherwise);
      if (!packed && p && has(k, j)) pack.v[j] = p[at(k, j)];
    }
    return pack;
  }
  __device__ void store(T* p, int k, const P& pack) const {
    if (packed) {
      if (has(k, 0)) *reinterpret_cast<P*>(p + at(k, 0)) = pack;
      return;
    }
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (has(k, j)) p[at(k, j)] = pack.v[j];
  }

  __device__ C reduce(C value) const {
    if constexpr (group <= warp_size) {
      return warp_reduce<group>(value, Sum{});
    } else {
      return block_reduce<group>(value, Sum{});
    }
  }

  // Σ f(k, j) over the row; every lane gets it.
  template <class F>
  __device__ C sum(F f) const {
    C total = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (has(k, j)) total += f(k, j);
    return reduce(total);
  }
};

}  // namespace ebb::gpu
