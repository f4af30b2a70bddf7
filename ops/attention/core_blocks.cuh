// What a block of the kernels on cores (cores.cuh) does in both directions: which rows it owns,
// what these see of the tiles that they meet, how the tiles come; and which core is chosen.
#pragma once
#include "ebb/ops/attention/exact_core.cuh"
#include "ebb/ops/attention/odd.cuh"
#include "ebb/ops/attention/tensor_core.cuh"

namespace ebb::gpu::attention {

// The part of a tensor that belongs to one head.
template <class T>
__device__ Rows<T> rows_of(const FlashAttentionSize& s, std::int64_t head, T* x,
                           std::int64_t length, std::int64_t step, bool aligned) {
  x += head / s.heads * length * step + head % s.heads * s.head_dim;
  return {x, step, length, static_cast<int>(s.head_dim), aligned};
}

// Which head and which of its rows a block owns. Blocks of a head follow each other, as they share
// what is in the L2 cache, those with the most to do before the others.
template <int rows>
struct Place {
  std::int64_t head, first;
  __device__ Place(std::int64_t length, bool last_first, std::int64_t number) {
    const std::int64_t tiles = divide_up<std::int64_t>(length, rows);
    head = number / tiles;
    const std::int64_t tile = number % tiles;
    first = (last_first ? tiles - 1 - tile : tile) * rows;
  }
};

// Calls f for the block's place and all of its rows; or, where few rows are left, for places with
// some of these.
template <class Scope, int rows, bool of_keys, class F>
__device__ void each_place(const FlashAttentionSize& s, const OddRows& odd, F f) {
  const std::int64_t length = of_keys ? s.length_k : s.length_q;
  const bool last_first = s.is_causal && !of_keys;
  if constexpr (std::is_same_v<Scope, AllRows>) {
    f(Place<rows>(length, last_first, blockIdx.x), AllRows{});
  } else {
    const std::int64_t places = s.batch * s.heads * divide_up<std::int64_t>(length, rows);
    for (std::int64_t number = blockIdx.x; number < places; number += gridDim.x) {
      const Place<rows> at(length, last_first, number);
      const Reached reached(odd, s, at.head);
      if (!reached.any_from<of_keys>(at.first)) continue;
      if (number != blockIdx.x) __syncthreads();
      f(at, reached);
    }
  }
}

// What the rows from `own` on see of the `cols` others from `other` on; of_keys: the rows are keys,
// and the others queries.
template <class Core, bool of_keys>
struct Sight {
  static constexpr int far = 1 << 30;
  int gap = far;  // a query's own row and column 0: how far it is behind that key
  int left;       // of the others

  __device__ Sight(bool is_causal, std::int64_t own, std::int64_t other, std::int64_t length) {
    const std::int64_t ahead = of_keys ? other - own : own - other;
    if (is_causal && ahead < Core::rows + Core::cols) gap = static_cast<int>(ahead);
    left = static_cast<int>(min(length - other, std::int64_t{Core::cols}));
  }
  __device__ bool operator()(int row, int col) const {
    return (of_keys ? col - row : row - col) + gap >= 0;
  }
  // What the thread's r-th row has in its c-th column.
  __device__ bool hides(int r, int c) const {
    return Core::col(c) >= left || !(*this)(Core::row(r), Core::col(c));
  }
  __device__ bool diagonal() const { return gap < (of_keys ? Core::rows : Core::cols) - 1; }
  __device__ bool whole() const { return left == Core::cols && !diagonal(); }
};

// f(r, c) for each score that a thread has.
template <class Core, class F>
__device__ void each(F f) {
#pragma unroll
  for (int r = 0; r < Core::own_rows; ++r)
#pragma unroll
    for (int c = 0; c < Core::own_cols; ++c) f(r, c);
}

// Calls meet(stage, j) for the tiles of others at j, which fetch(stage, j) has brought: all at once
// with one stage, during the tile before with two.
template <class Core, class Fetch, class Meet>
__device__ void for_tiles(std::int64_t first, std::int64_t end, Fetch fetch, Meet meet) {
  constexpr bool ahead = Core::stages == 2;
  if (ahead && first < end) fetch(0, first);
  int stage = 0;
  for (std::int64_t j = first; j < end; j += Core::cols) {
    if (!ahead) {
      __syncthreads();
      fetch(0, j);
    }
    wait_for_copies();
    __syncthreads();
    if (ahead && j + Core::cols < end) fetch(1 - stage, j + Core::cols);
    meet(stage, j);
    if (ahead) stage = 1 - stage;
  }
}

// Rows and columns of a thread that multiplies by itself: as many as registers have room for, and
// shared memory where it is `roomy`, as on A100 and H100; else 64 KB are enough (not for f64 at
// 256).
template <class V, int width, bool roomy>
struct ExactSizes {
  static constexpr int most = width <= 64 ? 4 : width <= 128 ? 2 : 1;
  static constexpr int few = sizeof(V) == 4 || most == 1 ? most : most / 2;
  static constexpr int cols = roomy ? 2 * few : few;
  static constexpr int rows = cols;
  static constexpr int gradient_rows = width <= 64 ? few : cols;
};

template <class F>
void with_width(std::int64_t head_dim, F f) {
  if (head_dim <= 32) return f(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 96) return f(std::integral_constant<int, 96>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  f(std::integral_constant<int, 256>{});
}

// Odd rows are rare: it is enough to fill the GPU.
inline dim3 blocks_for(const FlashAttentionSize& s, const OddRows& odd, std::int64_t length,
                       int rows) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  std::int64_t blocks = s.batch * s.heads * divide_up<std::int64_t>(length, rows);
  if (odd.tiles != nullptr) blocks = std::min<std::int64_t>(blocks, 2 * multiprocessors());
  require(blocks <= most, Kind::limit, op, "too many blocks", blocks, most);
  return dim3(static_cast<unsigned>(blocks));
}

template <class Memory>
size_t memory_for() {
  const auto most = static_cast<size_t>(block_memory());
  require(sizeof(Memory) <= most, Kind::limit, op, "too little shared memory on this GPU", most,
          sizeof(Memory));
  return sizeof(Memory);
}

// Calls f(core of attend(), core of gradients()) for the type, head_dim and GPU.
template <class T, class F>
void with_cores(std::int64_t head_dim, F f) {
  with_width(head_dim, [&](auto padded) {
    constexpr int w = padded;
    if constexpr (std::is_same_v<T, bf16> && w <= 128) {
      if (compute_capability() >= 80)
        return f(TensorCore<w, 2, 64>{}, TensorCore < w, w <= 64 ? 2 : 1, w <= 64 ? 32 : 64 > {});
    }
    constexpr int width = w == 96 ? 128 : w;
    const auto with = [&](auto roomy) {
      using Sizes = ExactSizes<Compute<T>, width, roomy>;
      f(ExactCore<T, width, Sizes::rows, Sizes::cols>{},
        ExactCore<T, width, Sizes::gradient_rows, Sizes::cols>{});
    };
    if constexpr (std::is_same_v<T, float>) {
      constexpr std::int64_t roomy = 113 * 1024;  // two blocks share a multiprocessor's 227 KB
      if (block_memory() >= roomy) return with(std::true_type{});
    }
    with(std::false_type{});
  });
}

// Calls f<what a kernel makes>(): all rows, or what odd ones reach.
template <class Core, class F>
void with_scope(const OddRows& odd, F f) {
  constexpr int width = 8 * Core::own_sums;
  if constexpr (std::is_same_v<typename Core::T, float> && (width == 64 || width == 128)) {
    if (odd.tiles != nullptr) return f.template operator()<Reached>();
  }
  f.template operator()<AllRows>();
}

}  // namespace ebb::gpu::attention
