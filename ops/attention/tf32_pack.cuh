// How flash attention in float32 on Hopper lays out what its products (tf32.cuh) take from shared
// memory, and what it keeps beside them.
//
// wgmma takes TF32 along k only: scores() needs the other rows as they are, weighted() turned.
// pack() writes both once, parted, tile after tile as they will lie in shared memory, so that a
// tile is two plain copies. That takes 8 bytes an element and form, 4 with TF32, for rows and a
// head_dim rounded up to 64.
//
// What is not finite, or as large as 2³², is odd: packed it is 0, and odd.cuh says what follows.
#pragma once
#include "ebb/core/basic.h"
#include "ebb/ops/attention/hopper_places.cuh"

namespace ebb::gpu::hopper {

using Quad = Pack<float, 4>;

// Half a tile of 64 others, as scores() takes it: [part][quad of the half width][row], or, for
// weighted(): [part][quad of 32 rows][element].
template <int width_, bool exact_, int warpgroups_ = 2>
struct Tf32Tiles {
  static constexpr int width = width_;
  static constexpr bool exact = exact_;
  static constexpr int parts = exact ? 2 : 1;
  static constexpr int warpgroups = warpgroups_;
  static constexpr int rows = 64 * warpgroups, cols = 64;
  static constexpr int workers = warpgroups * warpgroup;
  static constexpr int threads = workers + warpgroup;
  static constexpr int steps = width / 8;  // along the width
  static constexpr int quads = 8 * width;  // of a part
  struct Half {
    Quad data[parts][quads];
  };
};

// One tensor that is packed, or only looked at.
struct Packing {
  const float* x;
  std::int64_t length, step;
  void *along, *turned;  // or null
};
// What belongs to queries, tile after tile.
struct Statistics {
  float lse[64], d[64];
};
template <int n>
struct Packings {
  Packing at[n];
  std::uint64_t* odd;                // [heads,tiles of all]: a bit each row; or null
  Statistics* statistics = nullptr;  // of the first tensor's rows, by these:
  const float *lse = nullptr, *d = nullptr;
};

__host__ __device__ inline std::int64_t tiles_of(std::int64_t length) {
  return divide_up<std::int64_t>(length, 64);
}

__device__ inline float element(const attention::Rows<const float>& rows, int row, int col) {
  return row < rows.left && col < rows.head_dim ? rows.data[row * rows.step + col] : 0.0f;
}

// x rounded to the 11 bits of TF32, as 2¹³ + 1 times it pushes the others out; and what is left.
__device__ inline float big_of(float x) {
  const float far = __fmul_rn(x, 8193.0f);
  return __fsub_rn(far, __fsub_rn(far, x));
}
__device__ inline float small_of(float x, float big) {
  return __uint_as_float(__float_as_uint(x - big) & 0xffffe000u);
}

template <class S>
__device__ void store_parts(typename S::Half& half, int quad, const Quad& x) {
  Quad big, small;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    big.v[i] = big_of(x.v[i]);
    small.v[i] = small_of(x.v[i], big.v[i]);
  }
  half.data[0][quad] = big;
  if constexpr (S::exact) half.data[1][quad] = small;
}

// Which tile a block packs.
struct PackPlace {
  int which = 0;  // of the tensors
  std::int64_t line, tile;

  template <int n>
  __device__ explicit PackPlace(const Packings<n>& in) {
    std::int64_t all = 0;
#pragma unroll
    for (const Packing& p : in.at) all += tiles_of(p.length);
    line = blockIdx.x / all;
    tile = blockIdx.x % all;
    for (; which < n - 1; ++which) {
      const std::int64_t own = tiles_of(in.at[which].length);
      if (tile < own) break;
      tile -= own;
    }
  }
};

template <int n>
__device__ void pack_statistics(const Packings<n>& in, std::int64_t line, std::int64_t tile) {
  const std::int64_t length = in.at[0].length, i = 64 * tile + threadIdx.x;
  if (threadIdx.x >= 64) return;
  Statistics& to = in.statistics[line * tiles_of(length) + tile];
  const float lse = i < length ? in.lse[line * length + i] : -infinity;
  to.lse[threadIdx.x] = lse == -infinity ? infinity : lse;
  to.d[threadIdx.x] = i < length ? in.d[line * length + i] : 0.0f;
}

// In a turned tile keys 2 t and 2 t + 1 of eight are where t and t + 4 were: so the sums that a
// thread has of x are what it needs of p.
constexpr int pack_threads = 256;
template <class S, int n>
__global__ void __launch_bounds__(pack_threads)
    pack(FlashAttentionSize s, const __grid_constant__ Packings<n> in) {
  extern __shared__ float tile[];
  __shared__ unsigned odd_rows[2];
  constexpr int across = S::width + 1;
  const PackPlace at(in);
  const Packing& p = in.at[at.which];
  const attention::Rows<const float> rows{
      p.x + (at.line / s.heads * p.length + 64 * at.tile) * p.step + at.line % s.heads * s.head_dim,
      p.step, p.length - 64 * at.tile, static_cast<int>(s.head_dim), false};
  const auto each = [](int count, auto f) {
#pragma unroll 8
    for (int i = static_cast<int>(threadIdx.x); i < count; i += pack_threads) f(i);
  };
  if (threadIdx.x < 2) odd_rows[threadIdx.x] = 0;
  __syncthreads();
  each(64 * S::width, [&](int i) {
    const int row = i / S::width, col = i % S::width;
    const float x = element(rows, row, col);
    const bool odd = !(fabsf(x) < 0x1p32f);
    if (odd) atomicOr(&odd_rows[row / 32], 1u << row % 32);
    tile[row * across + col] = odd ? 0.0f : x;
  });
  __syncthreads();
  if (threadIdx.x == 0 && in.odd != nullptr)
    in.odd[blockIdx.x] = std::uint64_t{odd_rows[1]} << 32 | odd_rows[0];
  if (at.which == 0 && in.statistics != nullptr) pack_statistics(in, at.line, at.tile);
  const std::int64_t first = (at.line * tiles_of(p.length) + at.tile) * 2;
  const auto store = [&](void* packed, auto quad) {
    if (packed == nullptr) return;
    each(2 * S::quads, [&](int i) {
      store_parts<S>(static_cast<typename S::Half*>(packed)[first + i / S::quads], i % S::quads,
                     quad(i));
    });
  };
  store(p.along, [&](int i) {
    const float* const x = tile + i % 64 * across + i / 64 * 4;
    return Quad{x[0], x[1], x[2], x[3]};
  });
  store(p.turned, [&](int i) {
    const int quad = i / S::width;
    const float* const x = tile + (quad / 2 * 8 + quad % 2) * across + i % S::width;
    return Quad{x[0], x[2 * across], x[4 * across], x[6 * across]};
  });
}

// Room for the odd rows' bits.
inline Tensor odd_room(const FlashAttentionSize& s, std::int64_t tiles, const Tensor& like) {
  return empty({s.batch * s.heads, tiles, 2}, {Dtype::i32, like.device()});
}
inline std::uint64_t* odd_bits(Tensor& odd) {
  return reinterpret_cast<std::uint64_t*>(odd.data<std::int32_t>());
}

// Room for one form of a tensor.
template <class S>
Tensor packed_room(const FlashAttentionSize& s, std::int64_t length, const Tensor& like) {
  const std::int64_t halves = s.batch * s.heads * tiles_of(length) * 2;
  return empty({halves, static_cast<std::int64_t>(sizeof(typename S::Half) / sizeof(float))},
               like.options());
}

template <class S, int n>
void launch_pack(const FlashAttentionSize& s, const Packings<n>& in) {
  std::int64_t tiles = 0;
  for (const Packing& p : in.at) tiles += tiles_of(p.length);
  const std::int64_t blocks = s.batch * s.heads * tiles;
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  require(blocks <= most, Kind::limit, op, "too many blocks", blocks, most);
  launch(op, pack<S, n>, dim3(static_cast<unsigned>(blocks)), pack_threads,
         64 * (S::width + 1) * sizeof(float), s, in);
}

}  // namespace ebb::gpu::hopper
