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
#pragma once
#include "ebb/ops/attention/tf32_pack.cuh"

namespace ebb::gpu::hopper {

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
