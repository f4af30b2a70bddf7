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
__device__ void copy_async(void* to, const void* from, CachePolicy policy) {
  if constexpr (bytes == 16)
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
        "l"(from), "l"(policy)
        : "memory");
  else
    asm volatile(
        "cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
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
      : s_(s), memory_(static_cast<T*>(memory) + threadIdx.x * width), x_(x) {
    const int place = static_cast<int>(threadIdx.x) / warp_size;
    // The first warp, whose fence holds its loads up, comes last where there may be none for it.
    const int warp = columns ? place : held_warps<columns> - 1 - place;
    const int start = static_cast<int>(blockIdx.x) % s.group * s.share;
    const int left = min(s.units - start, s.share) - warp;
    first_ = start + warp;
    count_ = left > 0 ? divide_up(left, held_warps<columns>) : 0;
    next_tile_ = blockIdx.x / s.group;
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
    for (int k = 0; k < s_.steps; ++k) {
      arrive();
      if (k < count_) {
        take(w, at(tile, k), to_sum_);
        if (w.count > 0) f(w, k == 0);
      }
      to_sum_ = after(to_sum_, 1);
      if (k < s_.again) fetch();
    }
    to_sum_ = after(to_sum_, s_.again);
  }

  // y = f(x…) for the units of a tile, which make room for others.
  template <class F>
  __device__ void map(std::int64_t tile, T* y, F f) {
    Window w;
    to_map_ = after(to_map_, s_.again);
    for (int i = s_.again; i < s_.again + s_.steps; ++i) {
      const int k = i < s_.steps ? i : i - s_.steps;
      if (k < s_.again) arrive();
      if (k < count_) {
        take(w, at(tile, k), to_map_);
        w.map(y, f);
      }
      to_map_ = after(to_map_, 1);
      fetch();
    }
  }

 private:
  struct Place {
    std::int64_t at;  // of the lane's first pack
    int count;        // of its packs
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  __device__ Place at(std::int64_t tile, int k) const {
    const int unit = first_ + k * held_warps<columns>;
    if constexpr (columns) {
      const int row = unit * (most * step) + lane() / strip_lanes;
      const std::int64_t column = tile * s_.plane + lane() % strip_lanes * width;
      const int left = column < s_.row ? static_cast<int>(s_.samples) - row : 0;
      return {column + row * s_.row, min(most, divide_up(max(left, 0), step))};
    } else {
      const auto sample = static_cast<int>(s_.pieces.quotient(static_cast<unsigned>(unit)));
      const int first = (unit - sample * static_cast<int>(s_.pieces.d)) * s_.length;
      const int left = min(static_cast<int>(s_.packs) - first, s_.length) - lane();
      return {tile * s_.plane + sample * s_.row + std::int64_t{first + lane()} * width,
              divide_up(max(left, 0), step)};
    }
  }
  // Elements from a pack of a lane to its next.
  __device__ std::int64_t stride() const { return columns ? step * s_.row : step * width; }

  __device__ T* memory(int slot, int u, int q) const {
    return memory_ + ((slot * most + u) * inputs + q) * (held_warps<columns> * warp_size * width);
  }
  __device__ int after(int slot, int n) const {
    return slot + n < s_.slots ? slot + n : slot + n - s_.slots;
  }

  // Starts to load what is needed next, if there is anything: a group of copies in any case.
  __device__ void fetch() {
    const int k = next_ < s_.steps ? next_ : next_ - s_.steps;
    if (next_tile_ < s_.tiles && k < count_) {
      const Place p = at(next_tile_, k);
      const CachePolicy policy = next_ < s_.again ? staying_ : leaving_;
#pragma unroll
      for (int u = 0; u < most; ++u)
        if (u < p.count)
#pragma unroll
          for (int q = 0; q < inputs; ++q)
            copy_async<width * sizeof(T)>(memory(next_slot_, u, q), x_[q] + p.at + u * stride(),
                                          policy);
    }
    commit_copies();
    ++under_way_;
    next_slot_ = after(next_slot_, 1);
    if (++next_ < s_.steps + s_.again) return;
    next_ = 0;
    next_tile_ += gridDim.x / s_.group;
  }
  // Waits for the oldest of the units that are under way.
  __device__ void arrive() { wait_for_most(--under_way_); }

  // A window from shared memory.
  __device__ void take(Window& w, const Place& p, int slot) const {
    w.count = p.count;
#pragma unroll
    for (int u = 0; u < most; ++u) {
      w.place[u] = p.at + u * stride();
      const bool there = u < p.count;
#pragma unroll
      for (int q = 0; q < inputs; ++q) w.packs[u][q] = load_if<width>(there, memory(slot, u, q));
    }
  }

  const HeldLayout& s_;
  T* memory_;  // the thread's
  const T* const (&x_)[inputs];
  CachePolicy staying_ = kept_longest();
  CachePolicy leaving_ = dropped_first();
  std::int64_t next_tile_ = 0;  // to be fetched
  int next_ = 0;                // of its units, the first ones twice
  int next_slot_ = 0;
  int under_way_ = 0;  // units
  int to_sum_ = 0;     // slots
  int to_map_ = 0;
  int first_ = 0;  // unit of a tile
  int count_ = 0;  // units of a tile
};

}  // namespace ebb::gpu
