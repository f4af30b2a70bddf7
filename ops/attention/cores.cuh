// How a block of threads multiplies the tiles of flash attention, on any GPU: exact_core.cuh for
// every type, in Compute<T>, and tensor_core.cuh for bf16 on tensor cores, sm_80 and newer. The
// kernels of core_forward.cu and core_backward.cu are written once, for any such core.
//
// A block owns `rows` rows, of queries or of keys, and meets `cols` rows of the others at a time:
//
//   scores(x, own, other)         x[rows, cols] += own · otherᵀ
//   add(sums, x, other, …, sees)  sums[rows, width] += x · other, over what sees(row, column)
//   store(sums, factor, to, …)    rows of `to` that it takes = factor(r) · sums
//   draw(draws, own, other, f)    f(r, c, bits) for each x, of rows and columns from those on
//
//   weight(x, scale, shift)       e^(scale · x − shift), both given in its `unit`
//
// Both keep x and the sums in registers. A thread has `own_rows` rows, of which the r-th is row(r),
// and of each of them `own_cols` columns of x, of which the c-th is col(c); `lanes` neighbouring
// lanes share a row. Each warp has rows of its own.
#pragma once
#include <bit>

#include "ebb/ops/attention/heads.cuh"
#include "ebb/ops/mma.cuh"

namespace ebb::gpu::attention {

inline constexpr int threads = 128;
inline constexpr int warps = threads / warp_size;

__device__ inline int warp() { return static_cast<int>(threadIdx.x / warp_size); }

// What a row sees of a tile that has nothing to hide.
struct Everything {
  __device__ constexpr bool operator()(int, int) const { return true; }
};

// Fills a tile, with zeros beyond what is there. A thread takes one column of chunks.
template <class T, class Tile>
__device__ void load(Tile& tile, const Rows<const T>& rows) {
  using Chunk = typename Tile::Chunk;
  using V = std::remove_reference_t<decltype(Chunk{}.v[0])>;
  constexpr int width = sizeof(Chunk) / sizeof(V);
  constexpr int across = std::bit_ceil(static_cast<unsigned>(Tile::chunks));
  constexpr int down = threads / across;
  static_assert(Tile::rows % down == 0);
  const int chunk = static_cast<int>(threadIdx.x) % across;
  const int first = static_cast<int>(threadIdx.x) / across;
  if (across != Tile::chunks && chunk >= Tile::chunks) return;
  const int there = rows.head_dim - chunk * width;  // of this column
  const int last = static_cast<int>(min(rows.left, std::int64_t{Tile::rows}));
  const T* from = rows.data + first * rows.step + chunk * width;
  if (rows.aligned) {
#pragma unroll
    for (int n = 0; n < Tile::rows / down; ++n, from += down * rows.step) {
      const bool inside = there > 0 && first + n * down < last;
      Chunk& to = tile.at(first + n * down, chunk);
      if constexpr (std::is_same_v<T, V>) {
        copy_async(&to, inside ? from : rows.data, inside);
      } else {
        Pack<T, width> pack{};
        if (inside) pack = *reinterpret_cast<const Pack<T, width>*>(from);
#pragma unroll
        for (int j = 0; j < width; ++j) to.v[j] = widen(pack.v[j]);
      }
    }
    return;
  }
#pragma unroll 1
  for (int row = first; row < Tile::rows; row += down, from += down * rows.step)
#pragma unroll
    for (int j = 0; j < width; ++j)
      tile.at(row, chunk).v[j] = element<V>(row < last && j < there ? from[j] : T{});
}

}  // namespace ebb::gpu::attention
