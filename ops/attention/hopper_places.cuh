// Which rows the blocks of attention's kernels on Hopper own, bf16's and f32's, and how these are
// dealt out; of the rows which a thread has, and what they see.
#pragma once
#include <limits>

#include "ebb/ops/attention/tensor_core.cuh"
#include "ebb/ops/attention/tiers.h"
#include "ebb/ops/wgmma.cuh"

namespace ebb::gpu::hopper {

using attention::odd_of;
using attention::op;

inline constexpr float infinity = std::numeric_limits<float>::infinity();

// What a block is made of: `workers` multiply, and one warpgroup more copies.
template <int width_, int warpgroups_, int cols_, int stages_, int own_stages_>
struct Blocks {
  static constexpr int width = width_;
  static constexpr int warpgroups = warpgroups_;
  static constexpr int rows = 64 * warpgroups;
  static constexpr int cols = cols_;
  static constexpr int stages = stages_;
  static constexpr int own_stages = own_stages_;
  static constexpr int workers = warpgroups * warpgroup;
  static constexpr int threads = workers + warpgroup;
};

template <int warpgroups>
inline constexpr int registers_of_workers = warpgroups == 2 ? 240 : 160;
inline constexpr int registers_of_others = 24;

// What a warp's lanes agree on, so that the compiler knows it, too.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
__device__ inline int lane() { return static_cast<int>(threadIdx.x % warp_size); }
__device__ inline int this_warpgroup() {
  return uniform(static_cast<int>(threadIdx.x) / warpgroup);
}

// Of the thread's r-th row and c-th column.
__device__ inline int row(int r) {
  return static_cast<int>(threadIdx.x) / warp_size * 16 + 8 * r + lane() / 4;
}
__device__ inline int col(int c) { return c / 2 * 8 + lane() % 4 * 2 + c % 2; }

// Which of a tile's columns the thread's r-th row sees.
struct Sight {
  int from[2], to[2];
  __device__ bool sees(int r, int column) const { return from[r] <= column && column < to[r]; }
};

// f(r, c, bits) for each number that a thread has: they lie as mma.sync has them.
template <int cols, bool of_keys, class F>
__device__ void draw(const attention::Draws<of_keys>& draws, int own, int other, F f) {
  attention::TensorCore<64, 1, cols>::draw(draws, own, other, f);
}

// How places, which blocks stay at one after the other, are dealt out: there are as many blocks as
// run at a time, and each takes the next place when it has room for it, so that all end together.
struct Deal {
  std::int64_t places;
  std::int64_t together;  // heads: places of so many follow each other, then come other heads
  int* taken;             // beside the first one of each block; null: each has every gridDim-th

  __device__ std::int64_t after(std::int64_t number) const {
    return gridDim.x + (taken ? atomicAdd(taken, 1) : number);
  }
};

// The ring of what a block owns, with the numbers of its places, which the copying thread finds.
template <class S, int fetches>
struct Owned {
  Ring<S::own_stages> ring;
  std::int64_t numbers[S::own_stages];

  __device__ void init() { ring.init(fetches, S::workers); }
  __device__ Barrier& room(int i, std::int64_t number) {
    Barrier& full = ring.room(i);
    numbers[i % S::own_stages] = number;
    return full;
  }
  // copy(i, number) for the i-th place of the block, by the copying thread.
  template <class F>
  __device__ void send(const Deal& deal, F copy) {
    int i = 0;
    for (std::int64_t number = blockIdx.x, next; number < deal.places; number = next, ++i) {
      next = deal.after(number);  // asked for before the copies: it takes a while
      copy(i, number);
    }
    Barrier& full = room(i, -1);
    for (int k = 0; k < fetches; ++k) full.arrive();
  }
  // work(i, number) when what the place owns is there, by all others.
  template <class F>
  __device__ void receive(F work) {
    for (int i = 0;; ++i) {
      ring.wait(i);
      const std::int64_t number = numbers[i % S::own_stages];
      if (number < 0) return;
      work(i, number);
      ring.release(i);
    }
  }
};

// Which head and which of its rows a block owns, of queries or `of_keys`, and which tiles of the
// others they meet. Of heads that are dealt together first the rows with the most to do come, then
// the next.
template <class S, bool of_keys>
struct Place {
  std::int64_t line;  // the heads of all sequences are counted
  int head, sequence, first, length, begin, end;
  bool is_causal;

  // Of a head.
  __host__ __device__ static std::int64_t blocks_of(const FlashAttentionSize& s) {
    return divide_up<std::int64_t>(of_keys ? s.length_k : s.length_q, S::rows);
  }
  // What heads that are dealt together read again and again stays in the L2 cache.
  static Deal deal(const FlashAttentionSize& s, int* taken) {
    constexpr std::int64_t cached = 32 << 20;
    const std::int64_t heads = s.batch * s.heads;
    const std::int64_t bytes = 2 * sizeof(bf16) * (of_keys ? s.length_q : s.length_k) * s.head_dim;
    return {heads * blocks_of(s), std::clamp<std::int64_t>(cached / bytes, 1, heads), taken};
  }
  __device__ Place(const FlashAttentionSize& s, std::int64_t together, std::int64_t number)
      : length(static_cast<int>(of_keys ? s.length_q : s.length_k)), is_causal(s.is_causal) {
    const std::int64_t blocks = blocks_of(s);
    const std::int64_t before = number / (blocks * together) * together;  // heads
    const std::int64_t wide = min(s.batch * s.heads - before, together);
    const std::int64_t rest = number - before * blocks;
    const auto block = static_cast<int>(rest / wide);
    line = before + rest % wide;
    head = static_cast<int>(line % s.heads);
    sequence = static_cast<int>(line / s.heads);
    first = (is_causal && !of_keys ? static_cast<int>(blocks) - 1 - block : block) * S::rows;
    begin = is_causal && of_keys ? first / S::cols : 0;
    end = divide_up(is_causal && !of_keys ? min(first + S::rows, length) : length, S::cols);
  }
  __device__ int tiles() const { return max(end - begin, 0); }
  __device__ bool diagonal(int t) const {
    return is_causal &&
           (of_keys ? t * S::cols < first + S::rows - 1 : (t + 1) * S::cols - 1 > first);
  }
  __device__ bool whole(int t) const { return !diagonal(t) && (t + 1) * S::cols <= length; }
  // Where the whole tiles end that follow each other from t on; t if it is none.
  __device__ int end_of_whole(int t) const {
    const int from = is_causal && of_keys ? divide_up(first + S::rows - 1, S::cols) : 0;
    const int to = (is_causal && !of_keys ? min(first + 1, length) : length) / S::cols;
    return t < from ? t : max(t, to);
  }
  __device__ Sight sight(int t) const {
    Sight sight;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int own = first + row(r);
      sight.from[r] = of_keys && is_causal ? own - t * S::cols : 0;
      sight.to[r] = (is_causal && !of_keys ? min(length, own + 1) : length) - t * S::cols;
    }
    return sight;
  }
  // Of the head in a tensor whose sequences have `rows` rows, `step` elements apart: row `i`.
  template <class T>
  __device__ attention::Rows<T> rows_of(const FlashAttentionSize& s, T* x, std::int64_t rows,
                                        std::int64_t step, int i) const {
    x += (sequence * rows + i) * step + head * s.head_dim;
    return {x, step, rows - i, static_cast<int>(s.head_dim), true};
  }
};

// The block's places, one after the other, before which n tiles come: copy(at, n, stage, there) by
// the copying thread, `there` for what the place owns, and work(at, n, stage) by all that multiply.
template <class At, class S, int fetches, class Copy, class Work>
__device__ void run_dealt(const FlashAttentionSize& s, const Deal& deal, Owned<S, fetches>& own,
                          Copy copy, Work work) {
  int n = 0;
  if (threadIdx.x >= S::workers) {
    keep_registers<registers_of_others>();
    if (threadIdx.x == S::workers)
      own.send(deal, [&](int i, std::int64_t number) {
        const At at(s, deal.together, number);
        copy(at, n, i % S::own_stages, own.room(i, number));
        n += at.tiles();
      });
  } else {
    take_registers<registers_of_workers<S::warpgroups>>();
    own.receive([&](int i, std::int64_t number) {
      const At at(s, deal.together, number);
      work(at, n, i % S::own_stages);
      n += at.tiles();
    });
  }
}

// Writes the lse of the thread's rows, and finds what their sums are to be multiplied by.
template <bool drops, class Softmax, class S>
__device__ void finish_rows(const Softmax& softmax, const FlashAttentionSize& s,
                            const Place<S, false>& at, float scale, float* lse,
                            float (&factor)[2]) {
  const float kept = drops ? static_cast<float>(s.dropout.scale) : 1.0f;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float total = warp_reduce<4>(softmax.total[r], Sum{});
    const std::int64_t own = at.first + row(r);
    if (lane() % 4 == 0 && own < s.length_q)
      lse[at.line * s.length_q + own] = __fmul_rn(softmax.top[r], scale) + logf(total);
    factor[r] = total == 0 ? 0.0f : kept / total;
  }
}

// As many as run at a time: one a multiprocessor.
inline dim3 blocks_for(const Deal& deal) {
  return dim3(static_cast<unsigned>(std::min<std::int64_t>(deal.places, multiprocessors())));
}

}  // namespace ebb::gpu::hopper
