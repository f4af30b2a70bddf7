// What the convolutions of stride 1 on Hopper's tensor cores have in common: for which they are,
// and how they go through their stages, a ring that copies fill and products empty.
#pragma once
#include <limits>

#include "ebb/ops/convolution/line.cuh"
#include "ebb/ops/wgmma.cuh"

namespace ebb::gpu::convolution {

using hopper::Barrier;
using hopper::copy;
using hopper::moved;

inline constexpr int filters = 64;  // of a tile
inline constexpr int chunk_bytes = 16;
inline constexpr int half_memory = 113 * 1024;  // of a multiprocessor

// Goes through `count` stages in a ring of `slots`: fetch(stage, slot), by the threads that copy,
// begins what full[slot] counts, once all products with the slot are done; multiply(slot) queues
// products, and if it `waits` for them, the slot is free at once. All are done when it returns.
inline constexpr int most_slots = 8;
template <bool waits, class Fetch, class Multiply>
__device__ void run_stages(Barrier (&full)[most_slots], int slots, int count, bool copies,
                           Fetch fetch, Multiply multiply) {
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < slots; ++slot) full[slot].init(1);
    hopper::show_barriers();
  }
  __syncthreads();
  const int ahead = waits ? slots : slots - 1;
  if (copies) {
#pragma unroll 1
    for (int stage = 0; stage < ahead && stage < count; ++stage) fetch(stage, stage);
  }
  int now = 0, phase = 0;
#pragma unroll 1
  for (int stage = 0; stage < count; ++stage) {
    full[now].wait(phase);
    multiply(now);
    if constexpr (!waits) hopper::wait_for_products<1>();
    __syncthreads();
    const int done = waits ? now : now == 0 ? slots - 1 : now - 1;
    if (copies && stage + ahead < count) fetch(stage + ahead, done);
    if (++now == slots) {
      now = 0;
      phase ^= 1;
    }
  }
  hopper::wait_for_products<0>();
}

// Whether there is such a GPU, code for it (of `kernel`, as of all others), and no stride.
template <auto kernel>
bool usable(const Gather& g, Dtype dtype) {
  const std::int64_t weights = std::int64_t{g.h.kernel} * g.w.kernel * g.c * g.m;
  return compute_capability() == 90 && dtype != Dtype::f64 && g.h.stride == 1 && g.w.stride == 1 &&
         line_fits(g) && weights < std::int64_t{1} << 30 && hopper::has_barriers<kernel>(op);
}

// Whether three products with the zeros in tiles of so many rows and columns are less work than one
// on other cores, which half of them are where packing is worth it to sums of so many `terms`.
inline bool mostly_filled(const Gather& g, int rows, int cols, std::int64_t terms) {
  constexpr std::int64_t enough = 512;
  const std::int64_t filled = std::int64_t{2} * g.m * g.c - (terms < enough);
  return std::int64_t{round_up(g.m, rows)} * round_up(g.c, cols) <= filled;
}

// The slices of a weight gradient's sum over so many stages, at least `least`, with which it is
// soon over: two of the blocks, which are `tiles` a slice, run on a multiprocessor at a time, and
// their begin and end take as long as some stages.
inline Slices soonest_slices(std::int64_t tiles, std::int64_t stages, std::int64_t least = 1) {
  constexpr std::int64_t ends = 10, most_waves = 4;
  const std::int64_t at_once = 2 * multiprocessors();
  std::int64_t best = least, shortest = std::numeric_limits<std::int64_t>::max();
  const std::int64_t most = std::min(stages, most_waves * at_once / tiles);
  for (std::int64_t n = least; n == least || n <= most; ++n) {
    const std::int64_t time = divide_up(tiles * n, at_once) * (divide_up(stages, n) + ends);
    if (time < shortest) best = n, shortest = time;
  }
  return Slices(stages, best);
}

}  // namespace ebb::gpu::convolution

namespace ebb::gpu::hopper {
// The weight gradient in float32.
bool weight_gradient_tf32(const convolution::Weights& whole, const convolution::Gather& g,
                          const Tensor& x, const Tensor& dy, Tensor& dw);
}  // namespace ebb::gpu::hopper
