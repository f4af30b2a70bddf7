// Internal: not in <ebb/ebb.h>, not installed.
// Very long rows, each read once, where a GPU copies in bulk as Hopper does: every block all over
// the GPU has a slice of each row.
//
// The slices come, some rows a step, into a ring in shared memory by bulk copies. A block's 16
// warps sum up a step as it arrives, and map an earlier one, whose sums are known meanwhile. Four
// more warps refill what has been mapped; send what the block has found to the one whose turn it is
// to add up the step; do so for others; and receive the result. All that goes through memory while
// nobody waits for it: reads, arithmetic and writes go on together. Threads own columns: weights,
// and what is added up over the rows, stay in their registers.
#pragma once
#include "ebb/ops/normalization/norm_rows.cuh"

namespace ebb::gpu {

inline constexpr int spread_blocks = multiprocessors_used;
inline constexpr int spread_warps = 16;  // that have columns
inline constexpr int spread_threads = spread_warps * warp_size;
inline constexpr int spread_helpers = 4;         // more warps
inline constexpr int spread_turns = 8;           // steps whose sums are under way at a time
inline constexpr int spread_memory = 6 * 32768;  // of a block's ring

// Of a slice, where this thread's pack k begins.
template <class T>
__device__ int spread_column(int k) {
  return (k * spread_threads + static_cast<int>(threadIdx.x)) * pack_size<T>;
}

// n numbers of each lane, added up over the warp: in the end a lane has one, number(lane), as
// 32 / n neighbours do. Halves of the warp exchange halves of the numbers, then quarters.
template <int n>
struct Fold {
  static constexpr int lanes = warp_size / n;
  __device__ static int number(int lane) { return lane / lanes; }

  template <class C>
  __device__ static C add(C (&v)[n], int lane) {
    int offset = warp_size / 2;
#pragma unroll
    for (int left = n / 2; left >= 1; left /= 2, offset /= 2)
#pragma unroll
      for (int i = 0; i < left; ++i) {
        const bool upper = (lane & offset) != 0;
        const C send = upper ? v[i] : v[i + left];
        v[i] = (upper ? v[i + left] : v[i]) + __shfl_xor_sync(0xffffffffu, send, offset);
      }
    return warp_reduce<lanes>(v[0], Sum{});
  }
};

// What memory has beside the tensors, for the whole GPU.
template <class Given>
struct SpreadScratch {
  using Bits = unsigned long long;
  // What stands where no number has come: a NaN that is never sent. The number is its own flag, 8
  // bytes that come as one, so nothing has to be fenced.
  static constexpr Bits absent = ~Bits{};
  volatile Bits* found;  // [steps][blocks][numbers of a step]
  volatile Bits* sums;   // [steps][numbers]
  Given* given;          // [rows]
};

// A body (norm_spread.cu) has x; given(row, cols), what is known of a row before; known(row, cols,
// given, a, b, leader), what the map needs to know of it, from its two sums; and Own, what a thread
// has of its columns. `packs` are of a thread and a row, `rows` of a step.
template <class Body, int packs, int rows>
class SpreadRows {
 public:
  using T = typename Body::T;
  using Given = typename Body::Given;
  using Known = typename Body::Known;
  using Scratch = SpreadScratch<Given>;
  using Bits = typename Scratch::Bits;
  using Own = typename Body::template Own<packs>;
  static constexpr int width = pack_size<T>;
  static constexpr int inputs = Body::inputs;
  static constexpr int numbers = 2 * rows;
  static constexpr int row_packs = packs * spread_threads;
  static constexpr int slot_bytes = inputs * rows * row_packs * 16;
  static constexpr int slots = spread_memory / slot_bytes;  // steps in the ring
  static constexpr int lag = slots - 2;                     // steps from sums to their map
  static_assert(lag > 0 && spread_turns > lag);
  using P = Pack<T, width>;
  struct Shared {
    hopper::Barrier full[slots];
    hopper::Barrier empty[slots];
    hopper::Barrier summed[spread_turns];
    hopper::Barrier known[spread_turns];
    double of_warps[spread_turns][spread_warps][numbers];
    Known of_rows[spread_turns][rows];
  };

  __device__ SpreadRows(const Body& body, const NormRows& s, const Scratch& scratch, uint4* memory,
                        Shared& shared)
      : body_(body),
        s_(s),
        scratch_(scratch),
        memory_(memory),
        shared_(shared),
        steps_(static_cast<int>((s.rows + rows - 1) / rows)),
        keeps_(s.rows * s.cols * std::int64_t{sizeof(T)} < (1 << 26)) {
    first_ = first_column(blockIdx.x);
    count_ = static_cast<int>(first_column(blockIdx.x + 1) - first_);
    if (threadIdx.x == spread_threads) {
      for (int slot = 0; slot < slots; ++slot) {
        shared.full[slot].init(1);
        shared.empty[slot].init(spread_threads);
      }
      for (int turn = 0; turn < spread_turns; ++turn) {
        shared.summed[turn].init(spread_threads);
        shared.known[turn].init(3 * warp_size);  // each helper that follows the sums
      }
      hopper::show_barriers();
      for (int step = 0; step < slots; ++step) fetch(step, step);
    }
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const int block = static_cast<int>(blockIdx.x);
    for (int i = thread; i < steps_ * numbers; i += threads) {
      scratch.found[found(i / numbers, block) + i % numbers] = Scratch::absent;
      if (adds(i / numbers)) scratch.sums[i] = Scratch::absent;
    }
    for (std::int64_t row = block * threads + thread; row < s.rows; row += threads * spread_blocks)
      scratch.given[row] = body.given(row, s.cols);
    cooperative_groups::this_grid().sync();  // nobody may send before everybody expects it
  }

  // What the helpers do.
  __device__ void help(int helper) {
    if (helper == 0) {
      if (lane() != 0) return;
      Place at;
      for (int step = slots; step < steps_; ++step, go_on(at)) {
        shared_.empty[at.slot].wait(at.phase);
        fetch(step, at.slot);
      }
      return;
    }
    for (int step = 0; step < steps_; ++step) {
      await(shared_.summed, step);
      if (helper == 1) send(step);
      if (helper == 2 && adds(step)) add_up(step);
      if (helper == 3) receive(step);
      shared_.known[step % spread_turns].arrive();
    }
  }

  // What the others do.
  __device__ void walk(T* y) {
    Own own(body_, first_, count_);
    read_given(0);
    int i = 0;
    for (; i < min(lag, steps_); ++i) step<true, false>(own, i, y);
    for (; i < steps_; ++i) step<true, true>(own, i, y);
    for (i = max(i, lag); i < steps_ + lag; ++i) step<false, true>(own, i, y);
    own.finish();
  }

 private:
  struct Place {
    int slot = 0;
    int phase = 0;
  };
  using Packs = P[rows][packs][inputs];

  __device__ void go_on(Place& at) const {
    if (++at.slot < slots) return;
    at.slot = 0;
    at.phase ^= 1;
  }
  __device__ static void await(hopper::Barrier (&turns)[spread_turns], int step) {
    turns[step % spread_turns].wait(step / spread_turns % 2);
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  // Slices begin where lines of 128 bytes do.
  __device__ std::int64_t first_column(unsigned block) const {
    constexpr int line = 8 * width;
    const std::int64_t lines = divide_up<std::int64_t>(s_.cols, line);
    return min(lines * block / spread_blocks * line, s_.cols);
  }
  __device__ static std::int64_t row(int step, int r) { return std::int64_t{step} * rows + r; }
  __device__ static std::int64_t found(int step, int block) {
    return (std::int64_t{step} * spread_blocks + block) * numbers;
  }
  __device__ static bool adds(int step) {
    return step % spread_blocks == static_cast<int>(blockIdx.x);
  }
  __device__ uint4* memory(int slot, int r, int input) const {
    return memory_ + ((slot * rows + r) * inputs + input) * row_packs;
  }

  // By one thread.
  __device__ void fetch(int step, int slot) {
    const int bytes = count_ * static_cast<int>(sizeof(T));
    const int there =
        step < steps_ ? static_cast<int>(min(s_.rows - row(step, 0), std::int64_t{rows})) : 0;
    hopper::Barrier& full = shared_.full[slot];
    full.arrive_expecting(there * inputs * bytes);
    if (bytes == 0) return;
    for (int r = 0; r < there; ++r)
#pragma unroll
      for (int q = 0; q < inputs; ++q) {
        uint4* const to = memory(slot, r, q);
        const T* const from = body_.x[q] + row(step, r) * s_.cols + first_;
        if (keeps_)
          hopper::copy_passing(to, from, bytes, full);
        else
          hopper::copy(to, from, bytes, full);
      }
  }

  __device__ void read_given(int step) {
#pragma unroll
    for (int r = 0; r < rows; ++r)
      if (row(step, r) < s_.rows) next_[r] = scratch_.given[row(step, r)];
  }
  // Zeros where nothing is.
  __device__ void read(int step, int slot, Packs& in) const {
#pragma unroll
    for (int r = 0; r < rows; ++r)
#pragma unroll
      for (int k = 0; k < packs; ++k)
#pragma unroll
        for (int q = 0; q < inputs; ++q) {
          uint4 words{};
          if (spread_column<T>(k) < count_ && row(step, r) < s_.rows)
            words = memory(slot, r, q)[k * spread_threads + static_cast<int>(threadIdx.x)];
          in[r][k][q] = __builtin_bit_cast(P, words);
        }
  }

  // Sums up step i and then maps the one `lag` steps before.
  template <bool sums, bool maps>
  __device__ void step(Own& own, int i, T* y) {
    Packs in;
    if constexpr (sums) {
      shared_.full[summing_.slot].wait(summing_.phase);
      read(i, summing_.slot, in);
      go_on(summing_);
      Given given[rows];
#pragma unroll
      for (int r = 0; r < rows; ++r) given[r] = next_[r];
      if (i + 1 < steps_) read_given(i + 1);
      typename Body::Number v[numbers] = {};
#pragma unroll
      for (int r = 0; r < rows; ++r) own.add(given[r], in[r], v[2 * r], v[2 * r + 1]);
      own.count_rows(rows);
      tell(i, v);
    }
    if constexpr (maps) {
      await(shared_.known, i - lag);
      read(i - lag, mapping_.slot, in);
      map(own, i - lag, in, y);
      shared_.empty[mapping_.slot].arrive();
      go_on(mapping_);
    }
  }
  __device__ void tell(int step, typename Body::Number (&v)[numbers]) {
    const auto all = Fold<numbers>::add(v, lane());
    const int turn = step % spread_turns;
    if (lane() % Fold<numbers>::lanes == 0)
      shared_.of_warps[turn][threadIdx.x / warp_size][Fold<numbers>::number(lane())] =
          static_cast<double>(all);
    shared_.summed[turn].arrive();
  }
  __device__ void map(const Own& own, int step, const Packs& in, T* y) const {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (row(step, r) >= s_.rows) continue;
      const Known known = shared_.of_rows[step % spread_turns][r];
      T* const to = y + row(step, r) * s_.cols + first_;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const int column = spread_column<T>(k);
        if (column < count_) store_words(to + column, own.map(known, k, in[r][k]));
      }
    }
  }

  __device__ static Bits bits(double x) {
    const auto bits = __builtin_bit_cast(Bits, x);
    return bits == Scratch::absent ? bits >> 1 : bits;
  }
  // What the warps of this block have found.
  __device__ void send(int step) const {
    constexpr int each = Fold<numbers>::lanes;
    const int n = Fold<numbers>::number(lane());
    double sum = 0;
#pragma unroll
    for (int w = 0; w < spread_warps; w += each)
      if (w + lane() % each < spread_warps)
        sum += shared_.of_warps[step % spread_turns][w + lane() % each][n];
    sum = warp_reduce<each>(sum, Sum{});
    if (lane() % each == 0)
      scratch_.found[found(step, static_cast<int>(blockIdx.x)) + n] = bits(sum);
  }
  // What the blocks have found: each lane asks for one of the numbers.
  __device__ void add_up(int step) const {
    constexpr int all = spread_blocks * numbers;
    constexpr int batch = 17;  // under way at a time
    double sum = 0;
    for (int first = lane(); first < all; first += batch * warp_size) {
      Bits got[batch];
      bool there = false;
      while (!there) {
        there = true;
#pragma unroll
        for (int u = 0; u < batch; ++u) {
          const int at = first + u * warp_size;
          got[u] = at < all ? scratch_.found[found(step, 0) + at] : 0;
        }
#pragma unroll
        for (int u = 0; u < batch; ++u) there = there && got[u] != Scratch::absent;
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) sum += __builtin_bit_cast(double, got[u]);
    }
    __syncwarp();
#pragma unroll
    for (int offset = warp_size / 2; offset >= numbers; offset /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane() < numbers) scratch_.sums[step * numbers + lane()] = bits(sum);
  }
  __device__ void receive(int step) {
    const int r = lane() % rows;
    const std::int64_t own_row = row(step, r);
    const bool mine = lane() < rows && own_row < s_.rows;
    Given given{};
    if (mine) given = scratch_.given[own_row];
    Bits got;
    do got = scratch_.sums[step * numbers + lane() % numbers];
    while (got == Scratch::absent);
    __syncwarp();
    const double sum = __longlong_as_double(static_cast<long long>(got));
    const double a = __shfl_sync(0xffffffffu, sum, 2 * r);
    const double b = __shfl_sync(0xffffffffu, sum, 2 * r + 1);
    if (mine)
      shared_.of_rows[step % spread_turns][r] =
          body_.known(own_row, s_.cols, given, a, b, blockIdx.x == 0);
  }

  const Body& body_;
  const NormRows& s_;
  const Scratch& scratch_;
  uint4* memory_;
  Shared& shared_;
  int steps_;
  bool keeps_;          // what is written: the cache does, if what is read makes room
  std::int64_t first_;  // column of this block
  int count_;           // columns
  Given next_[rows] = {};
  Place summing_;
  Place mapping_;
};

template <class Body, int packs, int rows>
__global__ void __launch_bounds__(spread_threads + spread_helpers * warp_size, 1)
    spread_kernel(const __grid_constant__ Body body, const __grid_constant__ NormRows s,
                  const __grid_constant__ SpreadScratch<typename Body::Given> scratch,
                  typename Body::T* y) {
#if __CUDA_ARCH__ >= 900
  using Rows = SpreadRows<Body, packs, rows>;
  extern __shared__ __align__(128) uint4 memory[];
  __shared__ typename Rows::Shared shared;
  Rows spread(body, s, scratch, memory, shared);
  if (threadIdx.x >= spread_threads)
    spread.help(static_cast<int>(threadIdx.x) / warp_size - spread_warps);
  else
    spread.walk(y);
#endif
}

}  // namespace ebb::gpu
