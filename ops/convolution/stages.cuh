// How convolutions on Hopper go through their stages: copies fill a ring that products empty.
#pragma once
#include "ebb/ops/wgmma.cuh"

namespace ebb::gpu::hopper {

// Goes through `count` stages in a ring of `slots`: fetch(stage, slot), by the threads that copy,
// begins what full[slot] counts, once all products with the slot are done; multiply(slot) queues
// products, and if it `waits` for them, the slot is free at once. All are done when it returns.
inline constexpr int most_slots = 8;
template <bool waits, class Fetch, class Multiply>
__device__ void run_stages(Barrier (&full)[most_slots], int slots, int count, bool copies,
                           Fetch fetch, Multiply multiply) {
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < slots; ++slot) full[slot].init(1);
    show_barriers();
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
    if constexpr (!waits) wait_for_products<1>();
    __syncthreads();
    const int done = waits ? now : now == 0 ? slots - 1 : now - 1;
    if (copies && stage + ahead < count) fetch(stage + ahead, done);
    if (++now == slots) {
      now = 0;
      phase ^= 1;
    }
  }
  wait_for_products<0>();
}

}  // namespace ebb::gpu::hopper
