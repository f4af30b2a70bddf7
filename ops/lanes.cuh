// A row in the registers of a group of threads on the GPU: lanes take turns by packs of `width`
// elements, 16 bytes of them, or 1 where rows are not aligned to that.
//
// For kernels that hold several rows at once, or what belongs to columns, beside their rows;
// ops/rows.cuh is simpler where a row is all that a body needs.
#pragma once
#include "ebb/ops/packs.cuh"

namespace ebb::gpu {

template <class T, int group, int packs, int elements>
struct Lanes {
  static constexpr int width = elements;                 // of a pack
  static constexpr int columns = group * packs * width;  // that it holds
  using P = Pack<T, width>;
  using C = Compute<T>;
  int cols;
  int lane;

  __device__ int at(int k) const { return (k * group + lane) * width; }
  __device__ bool has(int k) const { return at(k) < cols; }

  // Elements that the lanes of this thread's warp have.
  __device__ int of_warp() const {
    int count = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      constexpr int most = warp_size * width;
      const int left = cols - (k * group + lane / warp_size * warp_size) * width;
      count += left < 0 ? 0 : left < most ? left : most;
    }
    return count;
  }

  // Pack k of the row at p, 0 beyond its end.
  __device__ P load(const T* p, int k) const { return load_if<width>(has(k), p + at(k)); }
  // The elements of pack k, which the row has; `otherwise` when there is no row.
  __device__ void load(const T* p, int k, C otherwise, C (&v)[width]) const {
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = otherwise;
    if (!p) return;
    const P pack = *reinterpret_cast<const P*>(p + at(k));
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = widen(pack, j);
  }
  __device__ void store(T* p, int k, const P& pack) const {
    if (has(k)) *reinterpret_cast<P*>(p + at(k)) = pack;
  }

  // f(k, j) for each element of this lane.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      if (!has(k)) continue;
#pragma unroll
      for (int j = 0; j < width; ++j) f(k, j);
    }
  }
};

}  // namespace ebb::gpu
