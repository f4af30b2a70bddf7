// The core of bf16 on tensor cores by mma.sync, from sm_80 on: a head_dim of up to 128, whatever
// its alignment. On Hopper hopper.cuh comes first, where rows begin at 16 bytes.
#pragma once
#include <limits>

#include "ebb/ops/attention/cores.cuh"

namespace ebb::gpu::attention {

// Not 0 where one of two numbers has the exponent of NaN and infinity.
__device__ inline unsigned odd_of(unsigned both) {
  return ((both & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
}

// Each warp has `bands` bands of 16 rows: a fragment of the other tile is loaded once for all of
// them, else shared memory would be what limits the tensor cores.
template <int width, int bands, int cols_>
class TensorCore {
 public:
  using T = bf16;
  using V = float;
  static constexpr int own_rows = 2 * bands;
  static constexpr int own_cols = cols_ / 4;
  static constexpr int own_sums = width / 4;
  static constexpr int lanes = 4;
  static constexpr int rows = warps * 16 * bands;
  static constexpr int cols = cols_;
  static constexpr int stages = 2;
  using X = float[own_rows][own_cols];
  using Sums = float[own_rows][own_sums];
  using Own = SwizzledTile<rows, width>;
  using Other = SwizzledTile<cols, width>;
  struct Scratch {};

  __device__ static int row(int r) {
    return warp() * 16 * bands + r / 2 * 16 + r % 2 * 8 + lane() / lanes;
  }
  __device__ static int col(int c) { return c / 2 * 8 + lane() % lanes * 2 + c % 2; }

  static constexpr float unit = log2_e;
  __device__ static float weight(float x, float scale, float shift) {
    return power_of_two(fmaf(x, scale, -shift));
  }

  __device__ static void scores(X& x, Own& own, Other& other) {
#pragma unroll
    for (int k = 0; k < width / 16; ++k) {
      unsigned a[bands][4];
#pragma unroll
      for (int i = 0; i < bands; ++i)
        load_blocks(a[i], &own.at(16 * (warp() * bands + i) + lane() % 16, 2 * k + lane() / 16));
#pragma unroll
      for (int n = 0; n < cols / 16; ++n) {
        unsigned b[4];
        load_blocks(b, &other.at(16 * n + lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
        multiply_bands(x, n, a, b);
      }
    }
  }

  // Lanes of two neighbouring rows need the same blocks: of two tiles, each makes one.
  template <bool of_keys, class F>
  __device__ static void draw(const Draws<of_keys>& draws, std::int64_t own, std::int64_t other,
                              F f) {
    const bool odd = lane() / 4 % 2 != 0;
#pragma unroll
    for (int i = 0; i < bands; ++i)
#pragma unroll
      for (int n = 0; n < cols / 16; n += 2) {
        const Philox p = draws.block(own + row(2 * i), other + 16 * (n + odd) + lane() % 4 * 2);
#pragma unroll
        for (int odd_col = 0; odd_col < 2; ++odd_col) {
          const unsigned mine = draws.word(p, odd, odd_col);
          const unsigned other_tile = __shfl_xor_sync(0xffffffffu, draws.word(p, !odd, odd_col), 4);
          const unsigned words[] = {odd ? other_tile : mine, odd ? mine : other_tile};
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            const int tile = k / 4, down = k / 2 % 2, right = k % 2;
            f(2 * i + down, 4 * (n + tile) + 2 * right + odd_col,
              draws.bits(words[tile], down, right));
          }
        }
      }
  }

  // What a row does not see is left out, not multiplied by its 0: it may be NaN or infinite. The
  // tensor cores get 0 in place of such numbers, and who sees them adds them after.
  template <class Sees>
  __device__ static void add(Sums& sums, const X& x, Other& other, Scratch&, const Sees& sees) {
#pragma unroll
    for (int k = 0; k < cols / 16; ++k) {
      unsigned a[bands][4];
#pragma unroll
      for (int i = 0; i < bands; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* const from = x[2 * i + j % 2] + 4 * k + j / 2 * 2;
          a[i][j] = pair(from[0], from[1]);
        }
      unsigned odd = 0;
#pragma unroll
      for (int n = 0; n < width / 16; ++n) {
        unsigned b[4];
        load_transposed(b, &other.at(16 * k + lane() % 16, 2 * n + lane() / 16));
        if constexpr (!std::is_same_v<Sees, Everything>) odd |= clear_odd(b);
        multiply_bands(sums, n, a, b);
      }
      if constexpr (!std::is_same_v<Sees, Everything>)
        if (__any_sync(0xffffffffu, odd != 0)) add_odd(sums, x, k, other, sees);
    }
  }

  // By way of `staging`, of which each warp overwrites its own rows: whole chunks are written.
  template <class Factor, class Takes>
  __device__ static void store(const Sums& sums, Factor factor, const Rows<T>& to, Takes takes,
                               Own& staging) {
    __syncwarp();  // all lanes have read what was there: a warp's rows are its own
#pragma unroll
    for (int r = 0; r < own_rows; ++r)
#pragma unroll
      for (int c = 0; c < own_sums; c += 2)
        reinterpret_cast<unsigned*>(&staging.at(row(r), c / 2))[lane() % lanes] =
            pair(sums[r][c] * factor(r), sums[r][c + 1] * factor(r));
    __syncwarp();
    for (int i = lane(); i < 16 * bands * Own::chunks; i += warp_size) {
      const int row = warp() * 16 * bands + i / Own::chunks;
      const int column = i % Own::chunks * 8;
      if (row >= to.left || !takes(row)) continue;
      const Pack<T, 8>& chunk = staging.at(row, column / 8);
      T* p = to.data + row * to.step + column;
      if (to.aligned) {
        if (column < to.head_dim) *reinterpret_cast<Pack<T, 8>*>(p) = chunk;
        continue;
      }
      for (int j = 0; j < 8 && column + j < to.head_dim; ++j) p[j] = chunk.v[j];
    }
  }

 private:
  // Columns 16 n and on of every band.
  template <int n_sums>
  __device__ static void multiply_bands(float (&sums)[own_rows][n_sums], int n,
                                        const unsigned (&a)[bands][4], const unsigned (&b)[4]) {
#pragma unroll
    for (int i = 0; i < bands; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* const upper = sums[2 * i] + 4 * n + 2 * h;
        float* const lower = sums[2 * i + 1] + 4 * n + 2 * h;
        multiply(upper[0], upper[1], lower[0], lower[1], a[i], b[2 * h], b[2 * h + 1]);
      }
  }

  // Puts 0 for what has the exponent of NaN and infinity; not 0 if there was any.
  __device__ static unsigned clear_odd(unsigned (&b)[4]) {
    unsigned any = 0;
#pragma unroll
    for (unsigned& word : b) {
      const unsigned odd = odd_of(word);
      word &= ~((odd >> 15) * 0xffffu);
      any |= odd;
    }
    return any;
  }

  template <class Sees>
  __device__ static void add_odd(Sums& sums, const X& x, int k, Other& other, const Sees& sees) {
#pragma unroll 1
    for (int j = 0; j < 16; ++j) {
      const int from = (lane() & ~3) | (j % 8 / 2);
      const bf16* line[Other::chunks];
#pragma unroll
      for (int n = 0; n < Other::chunks; ++n) line[n] = other.at(16 * k + j, n).v;
#pragma unroll
      for (int r = 0; r < own_rows; ++r) {
        const float* const quad = x[r] + 4 * k;
        const float even = j < 8 ? quad[0] : quad[2];
        const float uneven = j < 8 ? quad[1] : quad[3];
        const float weight = __shfl_sync(0xffffffffu, j % 2 ? uneven : even, from);
        if (!sees(row(r), 16 * k + j)) continue;
#pragma unroll
        for (int c = 0; c < own_sums; ++c) {
          const float value = widen(line[c / 2][lane() % lanes * 2 + c % 2]);
          if (!(fabsf(value) < std::numeric_limits<float>::infinity()))
            sums[r][c] += weight * value;
        }
      }
    }
  }
};

}  // namespace ebb::gpu::attention
