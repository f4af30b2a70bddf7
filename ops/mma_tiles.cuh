// Tiles of matrix products on tensor cores: what tiles.cuh is for FMA, for bf16, and for float32
// where TF32 is allowed.
//
//   C[rows, cols] = Σ over k of A[rows, k] · B[k, cols]
//
// Operands lie in chunks of 16 bytes. A slab is 64 bytes of k, two steps of the tensor cores:
// AlongK when a chunk is k of one row (or column), AcrossK when it is rows (or columns) of one k.
// Slabs are copied into a ring of stages without waiting, some ahead of those multiplied.
#pragma once
#include "ebb/ops/mma.cuh"
#include "ebb/ops/tiles.cuh"

namespace ebb::gpu {

template <class T>
using Chunk = Pack<T, pack_size<T>>;

inline constexpr int slab_chunks = 4;  // along k
template <class T>
inline constexpr int slab_depth = slab_chunks* pack_size<T>;

// rows × cols of C a block, of which each warp makes warp_rows × warp_cols.
template <int rows_, int cols_, int warp_rows_, int warp_cols_>
struct MmaTile {
  static constexpr int rows = rows_;
  static constexpr int cols = cols_;
  static constexpr int warp_rows = warp_rows_;
  static constexpr int warp_cols = warp_cols_;
  static constexpr int threads = rows / warp_rows * (cols / warp_cols) * warp_size;
  static constexpr int stages = 4;
  static_assert(warp_rows % 16 == 0 && warp_cols % 32 == 0);
};

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x % warp_size); }

// Numbers in memory are TF32 unless they are `raw` float32.
template <bool raw, int n>
__device__ void round_to_tf32(unsigned (&x)[n]) {
  if constexpr (raw) {
#pragma unroll
    for (unsigned& v : x) v = __float_as_uint(to_tf32(__uint_as_float(v)));
  }
}

// Chunk j of row i holds k of it. Eight chunks under each other are in different banks, and so are
// those of the rows that a `Cols` reads.
template <class T, int extent, bool raw = false>
struct AlongK {
  Chunk<T> data[extent * slab_chunks];

  __device__ static int index(int i, int chunk, int twist) {
    return i * slab_chunks + (chunk ^ (twist & 3));
  }

  // The left operand: sixteen rows a block.
  class Rows {
   public:
    __device__ static Chunk<T>& at(AlongK& slab, int i, int chunk) {
      return slab.data[index(i, chunk, i / 2)];
    }
    __device__ explicit Rows(int first) {
      const int i = first + lane_id() % 16;
#pragma unroll
      for (int step = 0; step < 2; ++step) at_[step] = index(i, 2 * step + lane_id() / 16, i / 2);
    }
    __device__ void load(unsigned (&a)[4], const AlongK& slab, int block, int step) const {
      load_blocks(a, slab.data + at_[step] + block * 16 * slab_chunks);
      round_to_tf32<raw>(a);
    }

   private:
    int at_[2];
  };

  // The right operand: of each 32 columns, a thread's sums are of eight adjacent ones. So fragment
  // f of these has columns 8·(i / 2) + 2·f + i % 2 for i < 8; two fragments a pair.
  class Cols {
   public:
    static constexpr int adjacent = 8;
    __device__ static Chunk<T>& at(AlongK& slab, int i, int chunk) {
      return slab.data[index(i, chunk, i / 2 ^ i / 8)];
    }
    __device__ explicit Cols(int first) {
      const int i = lane_id() % 8, f = lane_id() / 16;
      const int column = first + i / 2 * 8 + 2 * f + i % 2;
#pragma unroll
      for (int step = 0; step < 2; ++step)
        at_[step] = index(column, 2 * step + lane_id() / 8 % 2, f ^ i / 2);
    }
    // The second pair of 32 columns is four columns on, with the steps' chunks exchanged.
    __device__ void load(unsigned (&b)[4], const AlongK& slab, int pair, int step) const {
      const int second = pair % 2;
      load_blocks(b, slab.data + at_[step ^ second] + (pair / 2 * 32 + second * 4) * slab_chunks);
      round_to_tf32<raw>(b);
    }

   private:
    int at_[2];
  };
};

// Row k holds chunks of rows or columns; those of eight k under each other are in different banks,
// and so are the single numbers that TF32 is read by, as ldmatrix transposes only pairs of bytes.
template <class T, int extent>
struct AcrossK {
  static constexpr int chunks = extent / pack_size<T>;
  static constexpr bool wide = sizeof(T) == 4;
  static_assert(chunks % 8 == 0);
  Chunk<T> data[slab_depth<T> * chunks];

  __device__ static int index(int k, int chunk) {
    return k * chunks + (chunk ^ (k * 2 % 8 | k / 4 % 2));
  }
  __device__ Chunk<T>& at(int k, int chunk) { return data[index(k, chunk)]; }
  __device__ unsigned bits(int number) const {
    return reinterpret_cast<const unsigned*>(data)[number];
  }

  // A warp's first row or column is a multiple of what it has, a power of 2: so the chunk that
  // lies d after another of its chunks is found at index ^ d.
  // Of a fragment's four quarters the second lies along the rows of the left operand, and along k
  // of the right one.
  template <bool left>
  class Operand {
   public:
    static constexpr int adjacent = 2;
    __device__ static Chunk<T>& at(AcrossK& slab, int k, int chunk) { return slab.at(k, chunk); }
    __device__ explicit Operand(int first) {
      const int l = lane_id();
      if constexpr (wide) {
        at_[0] = index(l % 4, first / 4 + l / 16);
        at_[1] = index(l % 4 + 4, first / 4 + l / 16);
      } else {
        at_[0] = left ? index(l / 16 * 8 + l % 8, first / 8 + l / 8 % 2)
                      : index(l / 8 % 2 * 8 + l % 8, first / 8 + l / 16);
      }
    }
    __device__ void load(unsigned (&x)[4], const AcrossK& slab, int block, int step) const {
      if constexpr (wide) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int second = i % 2, third = i / 2;
          const int chunk = (at_[left ? third : second] + step * 8 * chunks) ^
                            (block * 4 + (left ? second : third) * 2);
          x[i] = slab.bits(chunk * 4 + lane_id() / 4 % 4);
        }
      } else {
        load_transposed(x, slab.data + ((at_[0] + step * 16 * chunks) ^ block * 2));
      }
    }

   private:
    int at_[wide ? 2 : 1];
  };
  using Rows = Operand<true>;
  using Cols = Operand<false>;
};

template <class T, class Tile, class A, class B>
class MmaCore {
  static constexpr int blocks = Tile::warp_rows / 16;
  static constexpr int fragments = Tile::warp_cols / 8;
  static constexpr int adjacent = B::Cols::adjacent;
  static constexpr int warps_across = Tile::cols / Tile::warp_cols;

 public:
  __device__ MmaCore()
      : row_(warp() / warps_across * Tile::warp_rows),
        col_(warp() % warps_across * Tile::warp_cols),
        rows_(row_),
        cols_(col_) {}

  __device__ void multiply(const A& a, const B& b) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      unsigned left[blocks][4], right[fragments / 2][4];
#pragma unroll
      for (int i = 0; i < blocks; ++i) rows_.load(left[i], a, i, step);
#pragma unroll
      for (int j = 0; j < fragments / 2; ++j) cols_.load(right[j], b, j, step);
#pragma unroll
      for (int i = 0; i < blocks; ++i)
#pragma unroll
        for (int j = 0; j < fragments; ++j)
          add(sum_[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
    }
  }

  // f(m, n, pack): adjacent n of one row of the finished tile.
  template <class F>
  __device__ void for_each(F f) const {
#pragma unroll
    for (int i = 0; i < 2 * blocks; ++i)
#pragma unroll
      for (int j = 0; j < fragments; j += adjacent / 2) {
        Pack<float, adjacent> sums;
#pragma unroll
        for (int e = 0; e < adjacent; ++e) sums.v[e] = sum_[i / 2][j + e / 2][i % 2 * 2 + e % 2];
        f(row_ + i * 8 + lane_id() / 4, col_ + j * 8 + lane_id() % 4 * adjacent, sums);
      }
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x / warp_size); }
  __device__ static void add(float (&s)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if constexpr (std::is_same_v<T, bf16>) {
      gpu::multiply(s[0], s[1], s[2], s[3], a, b0, b1);
    } else {
      multiply_tf32(s[0], s[1], s[2], s[3], a, b0, b1);
    }
  }

  int row_, col_;
  typename A::Rows rows_;
  typename B::Cols cols_;
  float sum_[blocks][fragments][4] = {};
};

template <class A, class B>
struct Stage {
  A a;
  B b;
};

// Adds `slabs` slabs of A·B to the core's sums; fetch(stage) begins to copy the next slab. All
// threads of the block must call it.
template <int stages, class S, class Fetch, class Core>
__device__ void multiply_stages(S* ring, Fetch fetch, Core& core, int slabs) {
#pragma unroll
  for (int s = 0; s < stages - 1; ++s) {
    if (s < slabs) fetch(ring[s]);
    commit_copies();
  }
  int now = 0, next = stages - 1;
  for (int slab = 0; slab < slabs; ++slab) {
    wait_for_groups<stages - 2>();
    __syncthreads();
    if (slab + stages - 1 < slabs) fetch(ring[next]);
    commit_copies();
    core.multiply(ring[now].a, ring[now].b);
    now = now + 1 == stages ? 0 : now + 1;
    next = next + 1 == stages ? 0 : next + 1;
  }
  wait_for_copies();
}

}  // namespace ebb::gpu
