// What flash attention in float32 is made of on Hopper, whose tensor cores multiply TF32. A number
// is the sum of a big and a small one of these, and of four products all but small · small count:
//
//   x = big + small,   big = TF32(x),   small = TF32(x − big),   |x − big − small| ≤ 2⁻²³ |x|
//   a · b = small a · big b + big a · small b + big a · big b
//
// where the user allows TF32, the last alone. The tensor cores cut their sums instead of rounding
// them: small products have a sum of their own or come first, and what a tile adds goes to totals
// in registers.
//
//   x[64,64] = own[64,width] · other[64,width]ᵀ             scores()
//   sums[64,width] = p[64,64] · other[64,width]             weighted(), p in registers
//
// wgmma takes TF32 along k only: the first needs the other rows as they are, the second turned.
// pack() writes both once, parted, tile after tile as they will lie in shared memory, so that a
// tile is two plain copies. That takes 8 bytes an element and form, 4 with TF32, for rows and a
// head_dim rounded up to 64.
//
// What is not finite, or as large as 2³², is odd: packed it is 0, and odd.cuh says what follows.
#pragma once
#include "ebb/core/basic.h"
#include "ebb/ops/attention/hopper.cuh"

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
// What belongs to queries, tile after tile: the lse, +∞ where no key is seen and beyond the end, so
// that P is 0 there, and D.
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

inline std::int64_t tiles_of(std::int64_t length) { return divide_up<std::int64_t>(length, 64); }

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
    for (const Packing& p : in.at) all += divide_up<std::int64_t>(p.length, 64);
    line = blockIdx.x / all;
    tile = blockIdx.x % all;
    for (; which < n - 1; ++which) {
      const std::int64_t own = divide_up<std::int64_t>(in.at[which].length, 64);
      if (tile < own) break;
      tile -= own;
    }
  }
};

template <int n>
__device__ void pack_statistics(const Packings<n>& in, std::int64_t line, std::int64_t tile) {
  const std::int64_t length = in.at[0].length, i = 64 * tile + threadIdx.x;
  if (threadIdx.x >= 64) return;
  Statistics& to = in.statistics[line * divide_up<std::int64_t>(length, 64) + tile];
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
  const std::int64_t first = (at.line * divide_up<std::int64_t>(p.length, 64) + at.tile) * 2;
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

// The tiles' halves in the order of their use.
template <class S, int stages_>
struct Halves {
  static constexpr int stages = stages_;
  typename S::Half at[stages];
};
template <class S, int stages>
struct Feed {
  Halves<S, stages>& halves;
  Ring<stages>& ring;
  int n = 0;  // that were used before

  __device__ void wait(int i) { ring.wait(n + i); }
  __device__ const Quad* half(int i) const { return halves.at[(n + i) % stages].data[0]; }
  __device__ void release(int count) {
    for (int i = 0; i < count; ++i) ring.release(n++);
  }
  // By the copying thread.
  __device__ void send(const typename S::Half* from) {
    Barrier& full = ring.room(n);
    full.arrive_expecting(sizeof(*from));
    copy(&halves.at[n % stages], from, sizeof(*from), full);
    ++n;
  }
  __device__ void send_tile(const void* packed, std::int64_t tile) {
    const auto* const from = static_cast<const typename S::Half*>(packed) + 2 * tile;
    send(from);
    send(from + 1);
  }
};

// What a thread needs of its warpgroup's own 64 rows, as the left operand.
template <class S>
struct OwnRows {
  Quad data[S::steps][S::workers];

  __device__ void load(const attention::Rows<const float>& rows) {
#pragma unroll
    for (int k = 0; k < S::steps; ++k) {
      Quad quad;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = element(rows, row(i % 2), 8 * k + lane() % 4 + i / 2 * 4);
        quad.v[i] = S::exact ? x : big_of(x);
      }
      data[k][threadIdx.x] = quad;
    }
  }
};

// Of the sums that a thread has, the r-th row and c-th column.
template <int n>
__device__ float& at(float (&sums)[n], int r, int c) {
  return sums[c / 2 * 4 + 2 * r + c % 2];
}
template <int n, class F>
__device__ void each_sum(float (&sums)[n], F f) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < n / 2; ++c) f(r, c, at(sums, r, c));
}

// What a thread has of the left operand of a step. Values are made before the products begin.
template <bool exact>
struct Left {
  unsigned big[4], small[4];

  // x, which is rounded already or not.
  __device__ void set(int i, float x, bool is_big = false) {
    const float rounded = is_big ? x : big_of(x);
    big[i] = __float_as_uint(rounded);
    asm volatile("" : "+r"(big[i]));
    if constexpr (!exact) return;
    small[i] = __float_as_uint(small_of(x, rounded));
    asm volatile("" : "+r"(small[i]));
  }
};

// Two steps at a time, whose left operands are made while those before are multiplied. Big · small
// comes before small · big if the left is the other one: so scores have the same bits lying down.
template <class S, bool swapped, int stages>
__device__ void scores(float (&x)[32], const OwnRows<S>& own, Feed<S, stages>& in) {
  // As many steps add up in the tensor cores as keep the sums' error at float32's.
  constexpr bool twice = S::exact && S::width > 64;
  float small[S::exact ? 32 : 1] = {}, first[twice ? 32 : 1];
  Left<S::exact> left[2][2];
  constexpr int pairs = S::steps / 2;
#pragma unroll
  for (int pair = 0; pair < pairs; ++pair) {
    Left<S::exact>(&now)[2] = left[pair % 2];
    wait_for_products<1>();
    if (pair == pairs / 2 + 1) in.release(1);  // the first half
    if (pair == 0 || pair == pairs / 2) in.wait(pair > 0);
    const Quad* const other = in.half(pair == pairs / 2);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Quad quad = own.data[2 * pair + k][threadIdx.x];
#pragma unroll
      for (int i = 0; i < 4; ++i) now[k].set(i, quad.v[i], !S::exact);
    }
    if constexpr (twice)
      if (pair == pairs / 2) {
        wait_for_products<0>();
        hold(x);
#pragma unroll
        for (int i = 0; i < 32; ++i) first[i] = x[i];
      }
    const std::uint64_t right = chunk_descriptor(other, 64 * 16, 8 * 16);
    begin_products();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const std::uint64_t big = moved(right, (2 * pair + k) % (S::steps / 2) * 2 * 64);
      if constexpr (S::exact) {
        const bool fresh = pair == 0 && k == 0;
        multiply_tf32(small, swapped ? now[k].big : now[k].small,
                      moved(big, swapped ? S::quads : 0), !fresh);
        multiply_tf32(small, swapped ? now[k].small : now[k].big,
                      moved(big, swapped ? 0 : S::quads));
      }
      multiply_tf32(x, now[k].big, big, (pair > 0 && !(twice && pair == pairs / 2)) || k > 0);
    }
    end_products();
  }
  wait_for_products<0>();
  hold(x);
  if constexpr (S::exact) {
    hold(small);
#pragma unroll
    for (int i = 0; i < 32; ++i) x[i] += small[i];
    if constexpr (twice) {
#pragma unroll
      for (int i = 0; i < 32; ++i) x[i] += first[i];
    }
  }
  in.release(1);
}

// No fused multiply-add: the weight of the largest score, which is taken from itself, is 1.
__device__ inline float weight_of(float x, float scale, float shift) {
  return power_of_two((__fmul_rn(x, scale) - shift) * log2_e);
}

template <class S, int stages>
__device__ void weighted(float (&sums)[S::width / 2], const float (&p)[32], Feed<S, stages>& in) {
  Left<S::exact> left[8];
#pragma unroll
  for (int k = 0; k < 8; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) left[k].set(i, p[4 * k + i % 2 * 2 + i / 2]);
  std::uint64_t right[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    in.wait(half);
    right[half] = chunk_descriptor(in.half(half), S::width * 16, 8 * 16);
  }
  begin_products();
#pragma unroll
  for (int k = 0; k < 8 && S::exact; ++k) {
    const std::uint64_t big = moved(right[k / 4], k % 4 * 2 * S::width);
    multiply_tf32(sums, left[k].small, big, k > 0);
    multiply_tf32(sums, left[k].big, moved(big, S::quads));
  }
#pragma unroll
  for (int k = 0; k < 8; ++k)
    multiply_tf32(sums, left[k].big, moved(right[k / 4], k % 4 * 2 * S::width), S::exact || k > 0);
  end_products();
  wait_for_products<0>();
  hold(sums);
  in.release(2);
}

// Where the blocks go.
struct Places {
  std::int64_t count;
  std::int64_t together;  // heads whose packed others stay in the L2 cache
};

// send(place) by the copying thread and work(place) by all that multiply, for each of the block's.
template <class Place, class S, class Send, class Work>
__device__ void run_places(const FlashAttentionSize& s, const Places& places, Send send,
                           Work work) {
  const auto each = [&](auto f) {
    for (std::int64_t number = blockIdx.x; number < places.count; number += gridDim.x)
      f(Place(s, places.together, number));
  };
  if (threadIdx.x >= S::workers) {
    keep_registers<registers_of_others>();
    if (threadIdx.x == S::workers) each(send);
  } else {
    take_registers<registers_of_workers<S::warpgroups>>();
    each(work);
  }
}

// rows of `to` = factor · sums.
template <int n>
__device__ void store_sums(float (&sums)[n], const float (&factor)[2],
                           const attention::Rows<float>& to) {
  each_sum(sums, [&](int r, int c, float value) {
    if (row(r) < to.left && col(c) < to.head_dim)
      to.data[row(r) * to.step + col(c)] = value * factor[r];
  });
}

// Where few tiles meet, packing and the longer way to a block's first product cost more than the
// tensor cores save.
inline bool fits_tf32(const FlashAttentionSize& s, Dtype dtype) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  return dtype == Dtype::f32 && s.batch * s.heads > 0 && s.head_dim > 32 && s.head_dim <= 128 &&
         std::min(s.length_q, s.length_k) >= (s.is_causal ? 384 : 193) && s.length_q <= most &&
         s.length_k <= most && compute_capability() == 90;
}

// Calls f with the tiles for the head_dim, and for what the user allows.
template <class F>
void with_tf32_tiles(std::int64_t head_dim, F f) {
  const auto with = [&]<int width>() {
    if (tf32_allowed())
      f(Tf32Tiles<width, false>{});
    else
      f(Tf32Tiles<width, true>{});
  };
  head_dim <= 64 ? with.template operator()<64>() : with.template operator()<128>();
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

template <class S, bool of_keys>
Places places_of(const FlashAttentionSize& s, int forms) {
  constexpr std::int64_t cached = 32 << 20;
  const std::int64_t heads = s.batch * s.heads;
  const std::int64_t tiles = tiles_of(of_keys ? s.length_q : s.length_k);
  const auto bytes = static_cast<std::int64_t>(forms * 2 * sizeof(typename S::Half)) * tiles;
  return {heads * Place<S, of_keys>::blocks_of(s),
          std::clamp<std::int64_t>(cached / bytes, 1, heads)};
}
// Blocks that stay find their next tiles there; where some have less to do, they are dealt out.
inline dim3 blocks_for(const FlashAttentionSize& s, const Places& places) {
  const std::int64_t most = s.is_causal ? (std::int64_t{1} << 31) - 1 : multiprocessors();
  return dim3(static_cast<unsigned>(std::min(places.count, most)));
}

}  // namespace ebb::gpu::hopper
