// A row in the registers of a group of threads on the GPU: lanes take turns by packs of 16 bytes.
//
// For kernels that hold several rows at once, or what belongs to columns, beside their rows;
// ops/rows.cuh is simpler where a row is all that a body needs.
//
// Rows may begin anywhere. Packs are as they lie in memory: the first and the last may have
// elements of other rows, which are passed over. Every period-th row begins at the same place in 16
// bytes, so that a group that takes no others has the same columns of each.
#pragma once
#include "ebb/ops/packs.cuh"

namespace ebb::gpu {

template <class T>
int row_period(std::int64_t cols) {
  const std::int64_t together = cols & -cols;  // the largest power of 2 in it
  return together >= pack_size<T> ? 1 : static_cast<int>(pack_size<T> / together);
}
// Packs that so many columns of such a row may touch.
template <class T>
std::int64_t packs_of(std::int64_t columns, int period) {
  return divide_up<std::int64_t>(columns + pack_size<T> - pack_size<T> / period, pack_size<T>);
}
// Group g's first row, of groups that have `most` rows at a time, `period` apart.
__host__ __device__ inline std::int64_t first_row(std::int64_t g, int period, int most = 1) {
  return g % period + g / period * period * most;
}

// `packed` rows are multiples of 16 bytes: their packs are all there or not at all.
template <class T, int group, int packs, bool packed>
struct Lanes {
  static constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  using C = Compute<T>;
  int cols;
  int lane;
  int of_others;  // elements of the first pack that are of another row

  __device__ int before() const { return packed ? 0 : of_others; }
  // Column of the first element of pack k, which may begin before the row and end behind it.
  __device__ int at(int k) const { return (k * group + lane) * width - before(); }
  // Whether the row has some of the pack, all of it, or its element j.
  __device__ bool has(int k) const { return at(k) < cols; }
  __device__ bool whole(int k) const {
    return packed ? has(k) : at(k) >= 0 && at(k) + width <= cols;
  }
  __device__ bool has(int k, int j) const {
    if (packed) return has(k);
    return static_cast<unsigned>(at(k) + j) < static_cast<unsigned>(cols);
  }

  // Of a vector of all columns, which begins at 16 bytes: ones if it is null, zeros where the row
  // has nothing.
  __device__ P load(const T* vector, int k) const {
    if (vector && before() == 0 && (packed || whole(k)))
      return load_if<width>(whole(k), vector + at(k));
    C v[width] = {};
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (has(k, j)) v[j] = vector ? widen(vector[at(k) + j]) : C(1);
    return narrow<T>(v);
  }
  __device__ void store(T* row, int k, const P& pack) const {
    if (whole(k)) return store_words(row + at(k), pack);
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (has(k, j)) row[at(k) + j] = pack.v[j];
  }

  // f(k, j) for each element of this lane.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (has(k, j)) f(k, j);
  }
};

}  // namespace ebb::gpu
