// How a block of threads multiplies the tiles of flash attention: ExactCore for every type, in
// Compute<T>, and TensorCore for bf16 on tensor cores.
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

#include "ebb/ops/attention/flash_attention.h"
#include "ebb/ops/mma.cuh"

namespace ebb::gpu::attention {

inline constexpr int threads = 128;
inline constexpr int warps = threads / warp_size;

__device__ inline int lane() { return static_cast<int>(threadIdx.x % warp_size); }
__device__ inline int warp() { return static_cast<int>(threadIdx.x / warp_size); }

// What a row sees of a tile that has nothing to hide.
struct Everything {
  __device__ constexpr bool operator()(int, int) const { return true; }
};

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

// 2^x with a relative error of 2⁻²²; 0 below 2⁻¹²⁶.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline constexpr float log2_e = 1.4426950408889634f;

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
      const unsigned odd = ((word & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
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
