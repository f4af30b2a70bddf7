// The core of every type on every GPU: fused multiply-adds of each thread, in Compute<T>. It serves
// f64, f32 where tf32.cuh does not, and bf16 before sm_80 or with a head_dim above 128.
#pragma once
#include "ebb/ops/attention/cores.cuh"

namespace ebb::gpu::attention {

// A thread has rows 4 and columns 8 apart: what a warp reads at once is in different banks, as rows
// of tiles are longer by 16 bytes than a multiple of all banks.
template <class T_, int width, int own_rows_, int own_cols_>
class ExactCore {
 public:
  using T = T_;
  using V = Compute<T>;
  static constexpr int own_rows = own_rows_;
  static constexpr int own_cols = own_cols_;
  static constexpr int own_sums = width / 8;
  static constexpr int lanes = 8;
  static constexpr int rows = warps * 4 * own_rows;
  static constexpr int cols = 8 * own_cols;
  static constexpr int stages = 1;
  static constexpr int pack = pack_size<V>;
  using X = V[own_rows][own_cols];
  using Sums = V[own_rows][own_sums];

  template <int rows_>
  struct Tile {
    static constexpr int rows = rows_;
    static constexpr int chunks = width / pack;
    using Chunk = Pack<V, pack>;
    Chunk data[rows][chunks + 1];
    __device__ Chunk& at(int row, int chunk) { return data[row][chunk]; }
  };
  using Own = Tile<rows>;
  using Other = Tile<cols>;
  struct Scratch {
    Pack<V, pack> x[rows][cols / pack + 1];
  };

  __device__ static int row(int r) { return warp() * 4 * own_rows + lane() / lanes + 4 * r; }
  __device__ static int col(int c) { return lane() % lanes + lanes * c; }

  // No fused multiply-add: the weight of the largest score, which is taken from itself, is 1.
  static constexpr V unit = 1;
  __device__ static float weight(float x, float scale, float shift) {
    return power_of_two((__fmul_rn(x, scale) - shift) * log2_e);
  }
  __device__ static double weight(double x, double scale, double shift) {
    return exp(__dmul_rn(x, scale) - shift);
  }

  __device__ static void scores(X& x, Own& own, Other& other) {
#pragma unroll 2
    for (int k = 0; k < Own::chunks; ++k) {
      Pack<V, pack> a[own_rows], b[own_cols];
#pragma unroll
      for (int r = 0; r < own_rows; ++r) a[r] = own.at(row(r), k);
#pragma unroll
      for (int c = 0; c < own_cols; ++c) b[c] = other.at(col(c), k);
#pragma unroll
      for (int j = 0; j < pack; ++j)
#pragma unroll
        for (int r = 0; r < own_rows; ++r)
#pragma unroll
          for (int c = 0; c < own_cols; ++c) x[r][c] += a[r].v[j] * b[c].v[j];
    }
  }

  // A word serves for rows and columns that are 8 apart, as far as the thread has such.
  template <bool of_keys, class F>
  __device__ static void draw(const Draws<of_keys>& draws, std::int64_t own, std::int64_t other,
                              F f) {
    constexpr int down = own_rows % 4 == 0 ? 2 : 1, across = own_cols % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      if (r % 4 >= 4 / down) continue;
#pragma unroll
      for (int c = 0; c < own_cols; c += across) {
        const std::int64_t i = own + row(r), j = other + col(c);
        const unsigned word = draws.word(draws.block(i, j), i % 2 != 0, j % 2 != 0);
#pragma unroll
        for (int n = 0; n < down * across; ++n) {
          const int y = n / across, x = n % across;
          f(r + 2 * y, c + x, draws.bits(word, i / 8 % 2 + y, j / 8 % 2 + x));
        }
      }
    }
  }

  // x goes through shared memory, each warp's rows to itself.
  template <class Sees>
  __device__ static void add(Sums& sums, const X& x, Other& other, Scratch& scratch,
                             const Sees& sees) {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < own_rows; ++r)
#pragma unroll
      for (int c = 0; c < own_cols; ++c)
        scratch.x[row(r)][col(c) / pack].v[col(c) % pack] = x[r][c];
    __syncwarp();
#pragma unroll 2
    for (int k = 0; k < cols / pack; ++k) {
      Pack<V, pack> a[own_rows];
#pragma unroll
      for (int r = 0; r < own_rows; ++r) a[r] = scratch.x[row(r)][k];
#pragma unroll
      for (int j = 0; j < pack; ++j)
#pragma unroll
        for (int i = 0; i < own_sums / pack; ++i) {
          const Pack<V, pack> b = other.at(k * pack + j, lane() % lanes + lanes * i);
#pragma unroll
          for (int r = 0; r < own_rows; ++r) {
            if (!sees(row(r), k * pack + j)) continue;
#pragma unroll
            for (int e = 0; e < pack; ++e) sums[r][i * pack + e] += a[r].v[j] * b.v[e];
          }
        }
    }
  }

  template <class Factor, class Takes>
  __device__ static void store(const Sums& sums, Factor factor, const Rows<T>& to, Takes takes,
                               Own&) {
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      if (row(r) >= to.left || !takes(row(r))) continue;
#pragma unroll
      for (int i = 0; i < own_sums / pack; ++i) {
        const int column = (lane() % lanes + lanes * i) * pack;
        Pack<T, pack> y;
#pragma unroll
        for (int e = 0; e < pack; ++e) y.v[e] = narrow<T>(sums[r][i * pack + e] * factor(r));
        T* p = to.data + row(r) * to.step + column;
        if (to.aligned) {
          if (column < to.head_dim) *reinterpret_cast<Pack<T, pack>*>(p) = y;
          continue;
        }
#pragma unroll
        for (int e = 0; e < pack; ++e)
          if (column + e < to.head_dim) p[e] = y.v[e];
      }
    }
  }
};

}  // namespace ebb::gpu::attention
