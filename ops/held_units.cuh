// What a warp holds in shared memory of a tile, which is a channel or a strip of columns. A unit is
// what it loads at once: a piece of a plane, or some rows of a strip.
//
// A warp goes over its units twice, for the sums and for the map. They come into a ring of slots in
// the order in which they are needed: what has been mapped makes room for the next tile. Where
// there are more units than slots, the first ones make room for others once they are summed, and
// come again for the map: the cache has been asked to keep them.
#pragma once
#include "ebb/ops/channels.cuh"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/mma.cuh"

namespace ebb::gpu {

// Of a block. A multiprocessor has two blocks for channels; sums of many columns need too much
// memory for that.
template <bool columns>
inline constexpr int held_warps = columns ? 16 : 8;
template <bool columns>
inline constexpr int held_threads = held_warps<columns>* warp_size;
template <bool columns>
inline constexpr int held_blocks = columns ? 1 : 2;  // of a multiprocessor
inline constexpr int strip_lanes = 8;                // packs of a strip's row

struct HeldLayout {
  std::int64_t tiles;
  std::int64_t plane;    // elements from a tile to the next
  std::int64_t row;      // elements from a sample to the next
  std::int64_t samples;  // planes of a tile
  std::int64_t packs;    // of a plane
  bool passing;          // y, as in load()
  Divider pieces{};      // of a plane
  int length = 1;        // packs of a piece
  int units = 1;         // of a tile
  int group = 1;         // blocks of a tile
  int share = 0;         // units of a block
  int steps = 1;         // units of a warp
  int slots = 1;         // units of a warp that shared memory has room for
  int again = 0;         // units of a warp that come twice
};

// What the second-level cache does with lines: it keeps them longest, or drops them first, so that
// a load need not wait until what was written before it has gone to memory.
using CachePolicy = std::uint64_t;
__device__ inline CachePolicy kept_longest() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline CachePolicy dropped_first() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// To shared memory, as in mma.cuh.
template <int bytes>
__device__ void copy_async(unsigned to, const void* from, CachePolicy policy) {
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(from), "l"(policy)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3;" ::"r"(to),
                 "l"(from), "n"(bytes), "l"(policy)
                 : "memory");
}

// Until all but the newest `left` groups of the thread's copies have arrived, or 8 if that is less.
template <int most = 8>
__device__ void wait_for_most(int left) {
  if constexpr (most > 0)
    if (left < most) return wait_for_most<most - 1>(left);
  wait_for_groups<most>();
}

// A warp's units of each tile. A thread loads, reads and replaces its own part of them, so that it
// waits for nobody.
template <class T, int inputs, int width, bool columns>
class HeldUnits {
 public:
  static constexpr int most = inputs == 1 ? 4 : 2;                            // packs of a lane
  static constexpr int step = columns ? warp_size / strip_lanes : warp_size;  // of a lane
  static constexpr int bytes =  // of a slot, of all warps
      held_warps<columns> * inputs * most * warp_size * width * static_cast<int>(sizeof(T));
  using Window = ChannelWindow<T, inputs, most, width>;

  __device__ HeldUnits(const HeldLayout& s, void* memory, const T* const (&x)[inputs])
      : s_(s), memory_(shared_address(memory) + threadIdx.x * width * sizeof(T)), x_(x) {
    const int place = static_cast<int>(threadIdx.x) / warp_size;
    // The first warp, whose fence holds its loads up, comes last where there may be none for it.
    const int warp = columns ? place : held_warps<columns> - 1 - place;
    const int start = static_cast<int>(blockIdx.x) % s.group * s.share;
    const int left = min(s.units - start, s.share) - warp;
    first_ = start + warp;
    count_ = left > 0 ? divide_up(left, held_warps<columns>) : 0;
    const auto pieces = static_cast<int>(s.pieces.d);
    pieces_ahead_ = held_warps<columns> % pieces;
    ahead_ = held_warps<columns> / pieces * sample() + pieces_ahead_ * piece();
    back_ = sample() - pieces * piece();
    left_ahead_ = columns ? held_warps<columns> * most * step : pieces_ahead_ * s.length;
    left_back_ = pieces * s.length;
    next_tile_ = blockIdx.x / s.group;
    next_ = at(next_tile_, 0);
    asm volatile("" : "+r"(memory_));  // kept, not computed again
    end_ = memory_ + s.slots * bytes;
    next_slot_ = to_sum_ = to_map_ = memory_;
  }
  // The first loads.
  __device__ void start() {
    for (int k = 0; k < s_.slots; ++k) fetch();
  }

  // Column of element j of the thread's packs; some column where that is beyond the last.
  __device__ std::int64_t column(std::int64_t tile, int j) const {
    if (!columns) return tile;
    const std::int64_t c = tile * s_.plane + lane() % strip_lanes * width + j;
    return c < s_.row ? c : 0;
  }

  // f(window, whether it is the first) for the units of a tile, none empty.
  template <class F>
  __device__ void sum(std::int64_t tile, F f) {
    Window w;
    Place p = at(tile, 0);
    for (int k = 0; k < s_.steps; ++k) {
      arrive();
      take(w, p, to_sum_);
      if (w.count > 0) f(w, k == 0);
      to_sum_ = after(to_sum_);
      go_on(p);
      if (k < s_.again) fetch();
    }
    for (int k = 0; k < s_.again; ++k) to_sum_ = after(to_sum_);
  }

  // y = f(x…) for the units of a tile, which make room for others.
  template <class F>
  __device__ void map(std::int64_t tile, T* y, F f) {
    Window w;
    for (int k = 0; k < s_.again; ++k) to_map_ = after(to_map_);
    Place p = at(tile, s_.again);
    for (int i = s_.again; i < s_.again + s_.steps; ++i) {
      if (i == s_.steps) p = at(tile, 0);
      if (i >= s_.steps) arrive();
      take(w, p, to_map_);
      w.map(y, f, s_.passing);
      to_map_ = after(to_map_);
      go_on(p);
      fetch();
    }
  }

 private:
  // Of a unit of the warp's.
  struct Place {
    std::int64_t at;  // of the lane's first pack
    int left;   // packs of the plane, or rows, from there on; beyond the warp's last unit none
    int piece;  // of the plane
    int units;  // of the warp's, from there on
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  // Elements from a sample to the next, or from some rows to the next; from a piece; from a pack of
  // a lane.
  __device__ std::int64_t sample() const { return columns ? most * step * s_.row : s_.row; }
  __device__ std::int64_t piece() const { return columns ? 0 : std::int64_t{s_.length} * width; }
  __device__ std::int64_t stride() const { return columns ? step * s_.row : step * width; }

  __device__ Place at(std::int64_t tile, int k) const {
    const int unit = first_ + k * held_warps<columns>;
    const int row = columns ? lane() / strip_lanes : 0;
    const int pack = columns ? lane() % strip_lanes : lane();
    const auto rows = columns ? unit : static_cast<int>(s_.pieces.quotient(unit));
    const int piece = columns ? 0 : unit - rows * static_cast<int>(s_.pieces.d);
    const std::int64_t from = tile * s_.plane + pack * width;
    const bool inside = tile < s_.tiles && (!columns || from < s_.row);
    return {from + rows * sample() + piece * this->piece() + row * s_.row,
            columns ? static_cast<int>(s_.samples) - unit * (most * step) - row
                    : static_cast<int>(s_.packs) - piece * s_.length - lane(),
            piece, inside ? count_ - k : 0};
  }
  // To the warp's next unit.
  __device__ void go_on(Place& p) const {
    --p.units;
    p.at += ahead_;
    p.left -= left_ahead_;
    if constexpr (columns) return;
    p.piece += pieces_ahead_;
    if (p.piece < static_cast<int>(s_.pieces.d)) return;
    p.piece -= static_cast<int>(s_.pieces.d);
    p.at += back_;
    p.left += left_back_;
  }
  // How many packs the lane has.
  __device__ int count(const Place& p) const {
    const int left = columns ? p.left : min(p.left, s_.length - lane());
    const auto packs = static_cast<unsigned>(max(left, 0) + step - 1) / step;
    return p.units > 0 ? min(most, static_cast<int>(packs)) : 0;
  }

  // Input q of the thread's pack u in a slot, which is an address in shared memory.
  __device__ static unsigned place(unsigned slot, int u, int q) {
    constexpr int part = bytes / (most * inputs);
    return slot + (u * inputs + q) * part;
  }
  __device__ unsigned after(unsigned slot) const {
    return slot + bytes < end_ ? slot + bytes : memory_;
  }

  // Starts to load what is needed next, if there is anything: a group of copies in any case.
  __device__ void fetch() {
    const int n = count(next_);
    if (n > 0) {
      const CachePolicy policy = fetched_ < s_.again ? staying_ : leaving_;
#pragma unroll
      for (int u = 0; u < most; ++u)
        if (u < n)
#pragma unroll
          for (int q = 0; q < inputs; ++q)
            copy_async<width * sizeof(T)>(place(next_slot_, u, q), x_[q] + next_.at + u * stride(),
                                          policy);
    }
    commit_copies();
    ++under_way_;
    next_slot_ = after(next_slot_);
    go_on(next_);
    ++fetched_;
    if (fetched_ == s_.steps) next_ = at(next_tile_, 0);
    if (fetched_ < s_.steps + s_.again) return;
    fetched_ = 0;
    next_tile_ += gridDim.x / s_.group;
    next_ = at(next_tile_, 0);
  }
  // Waits for the oldest of the units that are under way.
  __device__ void arrive() { wait_for_most(--under_way_); }

  // A window from shared memory.
  __device__ void take(Window& w, const Place& p, unsigned slot) const {
    w.count = count(p);
#pragma unroll
    for (int u = 0; u < most; ++u) {
      w.place[u] = p.at + u * stride();
#pragma unroll
      for (int q = 0; q < inputs; ++q)
        w.packs[u][q] = load_if<width>(
            true, static_cast<const T*>(__cvta_shared_to_generic(place(slot, u, q))));
    }
  }

  const HeldLayout& s_;
  unsigned memory_;  // the thread's first slot, as other slots an address in shared memory
  unsigned end_;     // of slots
  const T* const (&x_)[inputs];
  CachePolicy staying_ = kept_longest();
  CachePolicy leaving_ = dropped_first();
  std::int64_t next_tile_ = 0;  // to be fetched
  Place next_;                  // of its units, the first ones twice
  int fetched_ = 0;
  int under_way_ = 0;   // units
  unsigned next_slot_;  // to be filled
  unsigned to_sum_;
  unsigned to_map_;
  int first_ = 0;         // unit of a tile
  int count_ = 0;         // units of a tile
  int pieces_ahead_ = 0;  // from a unit to the warp's next
  int left_ahead_ = 0;
  int left_back_ = 0;
  std::int64_t ahead_ = 0;
  std::int64_t back_ = 0;  // from a piece beyond the last of a sample to the next one's
};

}  // namespace ebb::gpu
