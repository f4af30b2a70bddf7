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
  std::int64_t plane;              // elements from a tile to the next
  std::int64_t row;                // elements from a sample to the next
  std::int64_t samples;            // planes of a tile
  std::int64_t packs;              // of a plane
  bool passing;                    // y, as in load()
  WordDivider<unsigned> pieces{};  // of a plane
  int length = 1;                  // packs of a piece
  int units = 1;                   // of a tile
  int group = 1;                   // blocks of a tile
  int share = 0;                   // units of a block
  int steps = 1;                   // units of a warp
  int slots = 1;                   // units of a warp that shared memory has room for
  int again = 0;                   // units of a warp that come twice
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

// To shared memory, as in mma.cuh: a pack.
__device__ inline void copy_async(unsigned to, const void* from, CachePolicy policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "l"(policy)
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
template <class T, int inputs, bool ragged, bool columns>
class HeldUnits {
 public:
  static constexpr int width = pack_size<T>;
  static constexpr int most = inputs == 1 ? 4 : 2;                            // packs of a lane
  static constexpr int step = columns ? warp_size / strip_lanes : warp_size;  // of a lane
  static constexpr int bytes =  // of a slot, of all warps
      held_warps<columns> * inputs * most * warp_size * 16;
  using Window = ChannelWindow<T, inputs, most, width, ragged>;

  __device__ HeldUnits(const HeldLayout& s, void* memory, const T* const (&x)[inputs])
      : s_(s), memory_(shared_address(memory) + threadIdx.x * width * sizeof(T)), x_(x) {
    const int place = static_cast<int>(threadIdx.x) / warp_size;
    // The first warp, whose fence holds its loads up, comes last where there may be none for it.
    const int warp = columns ? place : held_warps<columns> - 1 - place;
    const int start = static_cast<int>(blockIdx.x) % s.group * s.share;
    const int left = min(s.units - start, s.share) - warp;
    first_ = start + warp;
    count_ = left > 0 ? divide_up(left, held_warps<columns>) : 0;
    next_tile_ = blockIdx.x / s.group;
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
    for (int k = 0; k < s_.steps; ++k) {
      arrive();
      take(w, at(tile, k), to_sum_);
      if (w.size() > 0) f(w, k == 0);
      to_sum_ = after(to_sum_);
      if (k < s_.again) fetch();
    }
    for (int k = 0; k < s_.again; ++k) to_sum_ = after(to_sum_);
  }

  // y = f(x…) for the units of a tile, which make room for others.
  template <class F>
  __device__ void map(std::int64_t tile, T* y, F f) {
    Window w;
    for (int k = 0; k < s_.again; ++k) to_map_ = after(to_map_);
    for (int i = s_.again; i < s_.again + s_.steps; ++i) {
      if (i >= s_.steps) arrive();
      take(w, at(tile, i), to_map_);
      w.map(y, f, s_.passing);
      to_map_ = after(to_map_);
      fetch();
    }
  }

 private:
  // Of a unit of the warp's.
  struct Place {
    std::int64_t at;  // of the lane's first pack
    int left;         // packs of the plane, or rows, from there on
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  // Elements from a pack of a lane to its next.
  __device__ std::int64_t stride() const { return columns ? step * s_.row : step * width; }

  // Of unit k of a tile, which after the last one is the first one again.
  __device__ Place at(std::int64_t tile, int k) const {
    if (k >= s_.steps) k -= s_.steps;
    const int unit = first_ + k * held_warps<columns>;
    const bool there = tile < s_.tiles && k < count_;
    if constexpr (columns) {
      const int row = unit * (most * step) + lane() / strip_lanes;
      const std::int64_t column = tile * s_.plane + lane() % strip_lanes * width;
      return {row * s_.row + column,
              there && column < s_.row ? static_cast<int>(s_.samples) - row : 0};
    } else {
      const auto sample = static_cast<int>(s_.pieces.quotient(unit));
      const int pack = (unit - sample * static_cast<int>(s_.pieces.d)) * s_.length + lane();
      return {sample * s_.row + tile * s_.plane + pack * width,
              there ? static_cast<int>(s_.packs) - pack : 0};
    }
  }
  // How many packs the lane has.
  __device__ int count(const Place& p) const {
    const int left = columns ? p.left : min(p.left, s_.length - lane());
    const auto packs = static_cast<unsigned>(max(left, 0) + step - 1) / step;
    return min(most, static_cast<int>(packs));
  }

  // Of pack u, as in own_elements().
  __device__ bool begins(const Place& p, int u) const { return p.left == s_.packs && u == 0; }
  __device__ std::int64_t rest(const Place& p, int u) const {
    return s_.plane - (s_.packs - p.left + u * step) * width;
  }

  // Input q of the thread's pack u in a slot, which is an address in shared memory.
  __device__ static unsigned place(unsigned slot, int u, int q) {
    constexpr int part = bytes / (most * inputs);
    return slot + (u * inputs + q) * part;
  }
  __device__ static T* shared(unsigned place) {
    return static_cast<T*>(__cvta_shared_to_generic(place));
  }
  __device__ unsigned after(unsigned slot) const {
    return slot + bytes < end_ ? slot + bytes : memory_;
  }

  // Starts to load what is needed next, if there is anything: a group of copies in any case.
  __device__ void fetch() {
    const Place next = at(next_tile_, fetched_);
    const int n = count(next);
    if (n > 0) {
      const CachePolicy policy = fetched_ < s_.again ? staying_ : leaving_;
#pragma unroll
      for (int u = 0; u < most; ++u) {
        std::int64_t at = next.at + u * stride();
        if (u >= n || (ragged && own_elements<width>(at, rest(next, u), begins(next, u)) == 0))
          continue;
        if (ragged) at &= -width;
        const std::int64_t left = ragged ? s_.samples * s_.row - at : width;  // of the tensor
#pragma unroll
        for (int q = 0; q < inputs; ++q)
          if (left >= width)
            copy_async(place(next_slot_, u, q), x_[q] + at, policy);
          else
            for (int j = 0; j < left; ++j) shared(place(next_slot_, u, q))[j] = x_[q][at + j];
      }
    }
    commit_copies();
    ++under_way_;
    next_slot_ = after(next_slot_);
    if (++fetched_ < s_.steps + s_.again) return;
    fetched_ = 0;
    next_tile_ += gridDim.x / s_.group;
  }
  // Waits for the oldest of the units that are under way.
  __device__ void arrive() { wait_for_most(--under_way_); }

  // A window from shared memory.
  __device__ void take(Window& w, const Place& p, unsigned slot) const {
    w.clear();
    w.count = count(p);
#pragma unroll
    for (int u = 0; u < most; ++u) {
      w.put(u, u < w.count, p.at + u * stride(), rest(p, u), begins(p, u));
#pragma unroll
      for (int q = 0; q < inputs; ++q)
        w.packs[u][q] = load_if<width>(true, shared(place(slot, u, q)));
    }
  }

  const HeldLayout& s_;
  unsigned memory_;  // the thread's first slot, as other slots an address in shared memory
  unsigned end_;     // of slots
  const T* const (&x_)[inputs];
  CachePolicy staying_ = kept_longest();
  CachePolicy leaving_ = dropped_first();
  std::int64_t next_tile_ = 0;  // to be fetched
  int fetched_ = 0;             // of its units, the first ones twice
  int under_way_ = 0;           // units
  unsigned next_slot_;          // to be filled
  unsigned to_sum_;
  unsigned to_map_;
  int first_ = 0;  // unit of a tile
  int count_ = 0;  // units of a tile
};

}  // namespace ebb::gpu
