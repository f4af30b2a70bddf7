// Internal: not in <ebb/ebb.h>, not installed.
// Long rows, each read once, where a GPU copies in bulk as Hopper does: blocks all over it have a
// slice of the row each.
//
// The slices come, row by row, into a ring in shared memory by bulk copies. A block's 16 warps sum
// up a step, one row or some, as it arrives, and map an earlier one, whose sums have come from the
// other blocks meanwhile. Four more warps refill what has been mapped, send sums to the other
// blocks, through memory, and receive theirs: so nobody waits for a row's way through the GPU, and
// reads, arithmetic and writes go on together. Threads own columns: weights, and what is added up
// over the rows, stay in their registers.
//
// Blocks that share rows are a group; where rows are short enough there are several.
#pragma once
#include <algorithm>

#include "ebb/ops/hopper.cuh"
#include "ebb/ops/normalization/norm_rows.cuh"
#include "ebb/ops/packs.cuh"
#include "ebb/ops/together.cuh"

namespace ebb::gpu {

inline constexpr int spread_blocks = 132;  // of every GPU that has them: all add in one order
inline constexpr int spread_warps = 16;    // that have columns
inline constexpr int spread_threads = spread_warps * warp_size;
inline constexpr int spread_helpers = 4;         // more warps
inline constexpr int spread_turns = 4;           // steps whose sums are under way at a time
inline constexpr int spread_memory = 27 * 8192;  // of a block's ring

// How rows lie over the blocks.
struct SpreadPlan {
  int packs = 0;   // of a thread and a row, none: it cannot be
  int blocks = 0;  // of a row
  int slice = 0;   // packs of a block
  int groups() const { return spread_blocks / blocks; }
};

struct Spread {
  std::int64_t rows;
  std::int64_t cols;
  int blocks;  // of a row
  int slice;   // packs of a block
};

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

// A body (norm_spread.cu) has x; given(row, cols), what memory has of a row; known(row, cols,
// given, a, b, leader), what the map needs to know of it, from its two sums; and Own, what a thread
// has of its columns. `packs` are of a thread and a row, `rows` of a step. A chunk, which a slot of
// the ring has room for, is a pack of each thread.
template <class Body, int packs, int rows>
class SpreadRows {
 public:
  using T = typename Body::T;
  using Given = typename Body::Given;
  using Known = typename Body::Known;
  static constexpr int width = pack_size<T>;
  using Own = typename Body::template Own<packs>;
  static constexpr int inputs = Body::inputs;
  static constexpr int numbers = 2 * rows;
  static constexpr int chunks = packs * rows;  // of a step
  static constexpr int slot_bytes = inputs * spread_threads * 16;
  static constexpr int slots = spread_memory / slot_bytes;
  static constexpr int lag = std::min(3, slots / chunks - 2);  // steps from sums to their map
  static_assert(lag > 0);
  using P = Pack<T, width>;
  using Bits = unsigned long long;
  struct Shared {
    hopper::Barrier full[slots];
    hopper::Barrier empty[slots];
    hopper::Barrier summed[spread_turns];
    hopper::Barrier known[spread_turns];
    double of_warps[spread_turns][spread_warps][numbers];
    Known of_rows[spread_turns][rows];
  };

  __device__ SpreadRows(const Body& body, const Spread& s, uint4* memory, Shared& shared,
                        Bits* partial)
      : body_(body),
        s_(s),
        memory_(memory),
        shared_(shared),
        partial_(partial),
        groups_(static_cast<int>(gridDim.x) / s.blocks),
        group_(static_cast<int>(blockIdx.x) / s.blocks),
        rank_(static_cast<int>(blockIdx.x) % s.blocks),
        first_(std::int64_t{rank_} * s.slice * pack_size<T>) {
    const std::int64_t left = s.cols - first_;
    const int most = s.slice * pack_size<T>;
    count_ = static_cast<int>(left < 0 ? 0 : left < most ? left : most);
    const std::int64_t each = std::int64_t{groups_} * rows;
    steps_ = static_cast<int>((s.rows + each - 1) / each);
    if (threadIdx.x == spread_threads) {
      for (int slot = 0; slot < slots; ++slot) {
        shared.full[slot].init(1);
        shared.empty[slot].init(spread_warps);
      }
      for (int turn = 0; turn < spread_turns; ++turn) {
        shared.summed[turn].init(spread_warps * numbers);
        shared.known[turn].init(rows);
      }
      hopper::show_barriers();
      for (int chunk = 0; chunk < slots; ++chunk) fetch(chunk, chunk);
    }
    for (int i = static_cast<int>(threadIdx.x); i < steps_ * numbers;
         i += static_cast<int>(blockDim.x)) {
      const std::int64_t r = row(i / numbers, i % numbers / 2);
      if (r < s.rows) partial_[part(r, rank_) + i % 2] = absent;
    }
    cooperative_groups::this_grid().sync();  // nobody may send before everybody expects it
  }

  // What the helpers do: one refills the ring, one sends, two receive.
  __device__ void help(int helper) {
    if (helper == 0) {
      if (lane() != 0) return;
      Place at;
      for (int chunk = slots; chunk < steps_ * chunks; ++chunk, go_on(at)) {
        shared_.empty[at.slot].wait(at.phase);
        fetch(chunk, at.slot);
      }
    } else if (helper == 1) {
      for (int step = 0; step < steps_; ++step) {
        await(shared_.summed, step);
        send(step);
      }
    } else {
      for (int step = helper - 2; step < steps_; step += 2) {
        await(shared_.summed, step);
        receive(step);
      }
    }
  }

  // What the others do.
  __device__ void walk(T* y) {
    const int thread = static_cast<int>(threadIdx.x);
    const int left = count_ - thread * width;
    const int mine = left > 0 ? divide_up(left, spread_threads * width) : 0;
    Own own(body_, first_ + thread * width, mine);
    Given next[rows];
    const auto read_given = [&](int step) {
#pragma unroll
      for (int r = 0; r < rows; ++r)
        if (row(step, r) < s_.rows) next[r] = body_.given(row(step, r), s_.cols);
    };
    read_given(0);
    Place summing;
    Place mapping;
    for (int i = 0; i < steps_ + lag; ++i) {
      if (i < steps_) {
        Given given[rows];
#pragma unroll
        for (int r = 0; r < rows; ++r) given[r] = next[r];
        if (i + 1 < steps_) read_given(i + 1);
        sum(own, i, summing, given);
      }
      if (i < lag) continue;
      await(shared_.known, i - lag);
      map(own, i - lag, mapping, y);
    }
    own.finish(group_, groups_);
  }

 private:
  struct Place {
    int slot = 0;
    int phase = 0;
  };
  // What stands where no number has come: a NaN that is never sent. The number is its own flag, 8
  // bytes that come as one, so nothing has to be fenced.
  static constexpr Bits absent = ~Bits{};

  __device__ void go_on(Place& at) const {
    if (++at.slot < slots) return;
    at.slot = 0;
    at.phase ^= 1;
  }
  __device__ static void await(hopper::Barrier (&turns)[spread_turns], int step) {
    turns[step % spread_turns].wait(step / spread_turns % 2);
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  __device__ std::int64_t row(int step, int r) const {
    return (std::int64_t{step} * groups_ + group_) * rows + r;
  }
  __device__ std::int64_t part(std::int64_t row, int rank) const {
    return (row * s_.blocks + rank) * 2;
  }
  // Of this block.
  __device__ std::int64_t begin(int step, int r) const { return row(step, r) * s_.cols + first_; }
  __device__ uint4* memory(int slot, int input) const {
    return memory_ + (slot * inputs + input) * spread_threads;
  }
  __device__ P read(int slot, int input) const {
    return __builtin_bit_cast(P, memory(slot, input)[threadIdx.x]);
  }

  // By one thread.
  __device__ void fetch(int chunk, int slot) {
    const int step = chunk / chunks;
    const int r = chunk % chunks / packs;
    const int first = chunk % packs * (spread_threads * width);  // of the block's columns
    const int n = min(count_ - first, spread_threads * width);
    const int bytes = n * static_cast<int>(sizeof(T));
    hopper::Barrier& full = shared_.full[slot];
    if (step >= steps_ || row(step, r) >= s_.rows || n <= 0) return full.arrive();
    full.arrive_expecting(inputs * bytes);
#pragma unroll
    for (int q = 0; q < inputs; ++q)
      hopper::copy_passing(memory(slot, q), body_.x[q] + begin(step, r) + first, bytes, full);
  }

  __device__ void sum(Own& own, int step, Place& at, const Given (&given)[rows]) {
    typename Body::Number v[numbers] = {};
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const bool inside = row(step, r) < s_.rows;
      own.open(given[r]);
#pragma unroll
      for (int k = 0; k < packs; ++k, go_on(at)) {
        shared_.full[at.slot].wait(at.phase);
        if (inside && k < own.mine) own.add(k, [&](int q) { return read(at.slot, q); });
      }
      if (inside) own.close(given[r], v[2 * r], v[2 * r + 1]);
    }
    own.count_rows(rows, group_, groups_);
    const auto all = Fold<numbers>::add(v, lane());
    if (lane() % Fold<numbers>::lanes != 0) return;
    const int turn = step % spread_turns;
    shared_.of_warps[turn][threadIdx.x / warp_size][Fold<numbers>::number(lane())] =
        static_cast<double>(all);
    shared_.summed[turn].arrive();
  }

  __device__ void map(Own& own, int step, Place& at, T* y) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const bool inside = row(step, r) < s_.rows;
      const Known known = shared_.of_rows[step % spread_turns][r];
      T* const to = y + begin(step, r) + static_cast<int>(threadIdx.x) * width;
#pragma unroll
      for (int k = 0; k < packs; ++k, go_on(at)) {
        if (inside && k < own.mine)
          store_words(to + k * spread_threads * width,
                      own.map(known, k, [&](int q) { return read(at.slot, q); }));
        __syncwarp();
        if (lane() == 0) shared_.empty[at.slot].arrive();
      }
    }
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
    const std::int64_t r = row(step, n / 2);
    if (lane() % each != 0 || r >= s_.rows) return;
    auto bits = __builtin_bit_cast(Bits, sum);
    if (bits == absent) bits >>= 1;
    partial_[part(r, rank_) + n % 2] = bits;
  }

  // What the blocks of the group have found: even lanes ask for their first numbers, odd ones for
  // the second.
  __device__ void receive(int step) {
    constexpr int most = (2 * spread_blocks + warp_size - 1) / warp_size;
    const std::int64_t own_row = row(step, lane() % rows);
    const bool mine = lane() < rows && own_row < s_.rows;
    Given given{};
    if (mine) given = body_.given(own_row, s_.cols);
    Bits bits[rows][most];
    bool all = false;
    while (!all) {
      all = true;
#pragma unroll
      for (int r = 0; r < rows; ++r)
#pragma unroll
        for (int u = 0; u < most; ++u) {
          const int at = u * warp_size + lane();
          bits[r][u] = at < 2 * s_.blocks && row(step, r) < s_.rows
                           ? partial_[part(row(step, r), 0) + at]
                           : 0;
        }
#pragma unroll
      for (int r = 0; r < rows; ++r)
#pragma unroll
        for (int u = 0; u < most; ++u) all = all && bits[r][u] != absent;
    }
    __syncwarp();
    double a = 0;
    double b = 0;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      double sum = 0;
#pragma unroll
      for (int u = 0; u < most; ++u) sum += __builtin_bit_cast(double, bits[r][u]);
#pragma unroll
      for (int offset = warp_size / 2; offset > 1; offset /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      const double first = __shfl_sync(0xffffffffu, sum, 0);
      const double second = __shfl_sync(0xffffffffu, sum, 1);
      if (lane() != r) continue;
      a = first;
      b = second;
    }
    if (mine)
      shared_.of_rows[step % spread_turns][lane()] =
          body_.known(own_row, s_.cols, given, a, b, rank_ == 0);
    if (lane() < rows) shared_.known[step % spread_turns].arrive();
  }

  const Body& body_;
  const Spread& s_;
  uint4* memory_;
  Shared& shared_;
  volatile Bits* partial_;  // [rows][blocks][2]
  int groups_;
  int group_;
  int rank_;            // in the group
  std::int64_t first_;  // column
  int count_;           // columns
  int steps_;
};

template <class Body, int packs, int rows>
__global__ void __launch_bounds__(spread_threads + spread_helpers * warp_size, 1)
    spread_kernel(const __grid_constant__ Body body, const __grid_constant__ Spread s,
                  unsigned long long* partial, typename Body::T* y) {
#if __CUDA_ARCH__ >= 900
  using Rows = SpreadRows<Body, packs, rows>;
  extern __shared__ __align__(128) uint4 memory[];
  __shared__ typename Rows::Shared shared;
  Rows spread(body, s, memory, shared, partial);
  if (threadIdx.x >= spread_threads)
    spread.help(static_cast<int>(threadIdx.x) / warp_size - spread_warps);
  else
    spread.walk(y);
#endif
}

// With the least to do for the busiest block, in packs that it could have read meanwhile: those of
// its rows, at least some of them in a step, what else a step takes, and `count` sums of columns
// where groups leave them.
template <class T, int per_step>
SpreadPlan spread_plan(const NormRows& s, int count) {
  constexpr std::int64_t least = per_step == 4 ? 700 : 500;
  constexpr std::int64_t else_of_step = 100;
  constexpr std::int64_t second_stage = 5000;
  const std::int64_t packs_of_row = s.cols / pack_size<T>;
  SpreadPlan best;
  std::int64_t shortest = 0;
  for (int packs = 1; packs <= 4; packs *= 2)
    for (int blocks = 1; blocks <= spread_blocks; ++blocks) {
      const std::int64_t slice = divide_up<std::int64_t>(packs_of_row, blocks);
      if (slice > packs * spread_threads) continue;
      const SpreadPlan plan{packs, blocks, static_cast<int>(slice)};
      const int rows = std::max(per_step / packs, 1);
      const std::int64_t steps =
          divide_up<std::int64_t>(s.rows, std::int64_t{plan.groups()} * rows);
      std::int64_t time = steps * (std::max<std::int64_t>(rows * plan.slice, least) + else_of_step);
      if (plan.groups() > 1 && count > 0)
        time += second_stage + plan.groups() * s.cols * count / (spread_blocks * 6);
      if (best.packs > 0 && time >= shortest) continue;
      shortest = time;
      best = plan;
    }
  return best;
}

// go.operator()<packs, rows>() for a plan; false, and nothing done, if there is none.
template <int per_step, class Go>
bool with_plan(const SpreadPlan& plan, const Go& go) {
  if (plan.packs == 0) return false;
  if (plan.packs == 1)
    go.template operator()<1, per_step>();
  else if (plan.packs == 2)
    go.template operator()<2, per_step / 2>();
  else
    go.template operator()<4, std::max(per_step / 4, 1)>();
  return true;
}

template <int packs, int rows, class Body>
void launch_spread(const char* op, const Body& body, const NormRows& n, const SpreadPlan& plan,
                   Device device, typename Body::T* y) {
  using Rows = SpreadRows<Body, packs, rows>;
  const Spread s{n.rows, n.cols, plan.blocks, plan.slice};
  Tensor partial = empty({n.rows, plan.blocks, 2}, {Dtype::f64, device});
  const auto grid = static_cast<unsigned>(plan.groups() * plan.blocks);
  launch_together(
      op, spread_kernel<Body, packs, rows>,
      {grid, spread_threads + spread_helpers * warp_size, size_t{Rows::slots} * Rows::slot_bytes},
      body, s, reinterpret_cast<unsigned long long*>(partial.data<double>()), y);
}

}  // namespace ebb::gpu
