// What all of attention's kernels share, on every GPU: the rows of a head, powers of two, the
// scale, and the random bits of dropout.
#pragma once
#include "ebb/ops/attention/flash_attention.h"
#include "ebb/ops/map.cuh"

namespace ebb::gpu::attention {

inline constexpr std::string_view op = "flash_attention";

__device__ inline int lane() { return static_cast<int>(threadIdx.x % warp_size); }

// The rows of one head in a tensor: they begin `step` elements apart, `left` of them are there.
template <class T>
struct Rows {
  T* data;
  std::int64_t step;
  std::int64_t left;
  int head_dim;
  bool aligned;  // every row begins at 16 bytes, head_dim is a multiple of 16 bytes

  __device__ Rows from(std::int64_t row) const {
    return {data + row * step, step, left - row, head_dim, aligned};
  }
};

template <class V, class T>
__device__ V element(T x) {
  if constexpr (std::is_same_v<T, V>) {
    return x;
  } else {
    return widen(x);
  }
}

// The random bits of one head's weights, of which flash_attention.h says which has which; of_keys:
// rows are keys and columns queries.
template <bool of_keys>
struct Draws {
  std::uint64_t seed, index;
  std::int64_t across, first;  // tiles of a row of queries, and before this head

  __device__ Philox block(std::int64_t row, std::int64_t col) const {
    const std::int64_t i = of_keys ? col : row, j = of_keys ? row : col;
    const std::int64_t tile = first + i / 16 * across + j / 16;
    const std::int64_t pair = i % 8 / 2 * 4 + j % 8 / 2;
    return philox(seed, static_cast<std::uint64_t>(16 * tile + pair), index);
  }
  __device__ static unsigned word(const Philox& p, bool odd_row, bool odd_col) {
    const bool odd_i = of_keys ? odd_col : odd_row, odd_j = of_keys ? odd_row : odd_col;
    return odd_i ? (odd_j ? p.v[3] : p.v[2]) : (odd_j ? p.v[1] : p.v[0]);
  }
  // The bits for a row and a column of these halves of a tile.
  __device__ static unsigned bits(unsigned word, int row_half, int col_half) {
    const int turn = of_keys ? 2 * col_half + row_half : 2 * row_half + col_half;
    return __funnelshift_r(word, word, 8 * turn);
  }
};

template <bool of_keys>
__device__ Draws<of_keys> draws_of(const FlashAttentionSize& s, std::int64_t head) {
  const std::int64_t across = divide_up<std::int64_t>(s.length_k, 16);
  const Stream& stream = s.dropout.stream;
  return {stream.seed, stream.now(), across,
          head * divide_up<std::int64_t>(s.length_q, 16) * across};
}

// Calls f with whether weights are dropped.
template <class F>
void with_dropout(const FlashAttentionSize& s, F f) {
  if (s.dropout.threshold > 0) return f(std::true_type{});
  f(std::false_type{});
}

// A score that is a number of its own, not the first half of a fused multiply-add.
__device__ inline float product(float x, float scale) { return __fmul_rn(x, scale); }
__device__ inline double product(double x, double scale) { return __dmul_rn(x, scale); }

// scale = sign · size, with a size above 0: the largest product has the largest score, and −∞
// stays.
template <class V>
struct Scale {
  V sign, size;
  __device__ explicit Scale(double scale)
      : sign(scale > 0   ? 1
             : scale < 0 ? -1
                         : 0),
        size(scale == 0 ? V(1) : V(fabs(scale))) {}
};

}  // namespace ebb::gpu::attention
