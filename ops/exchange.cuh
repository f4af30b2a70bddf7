// What the blocks of a cluster tell each other (sm_90): each sends its words to all of them, and
// reads what came when all are there.
//
// A barrier of the cluster would do, but it waits until what the blocks have stored before is in
// memory, which takes as long as a row does.
#pragma once
#include "ebb/ops/hopper.cuh"
#include "ebb/ops/together.cuh"

namespace ebb::gpu {

inline constexpr int largest_cluster = 16;  // that some GPUs can keep together
// That grids are cut for on every GPU, so that all add in one order: a Hopper's.
inline constexpr int multiprocessors_used = 132;

template <int words>
struct Exchange {
  using Words = std::uint64_t[words];
  hopper::Barrier there[2];
  Words found[2][largest_cluster];

  // By one thread, before all blocks meet.
  __device__ void init() {
    for (hopper::Barrier& barrier : there) barrier.init(1);
  }
  // The words of all `blocks`, in order. Threads 0, 1 … of all blocks call it with what their block
  // has, for n = 0, 1, 2 …, and meet in between: there are two places, and before one is written
  // again all have read it.
  __device__ const Words* of_all(int n, int blocks, int rank, int to, const Words& mine) {
    tell(n, blocks, rank, to, mine);
    return of_all(n);
  }
  // The same in two steps.
  __device__ void tell(int n, int blocks, int rank, int to, const Words& mine) {
    const int turn = n % 2;
    if (to == 0) there[turn].arrive_expecting(blocks * static_cast<int>(sizeof(Words)));
    if (to < blocks)
#pragma unroll
      for (int w = 0; w < words; ++w) hopper::send(found[turn][rank][w], mine[w], there[turn], to);
  }
  __device__ const Words* of_all(int n) {
    there[n % 2].wait(n / 2 % 2);
    return found[n % 2];
  }
};

// All threads of a row's blocks wait for each other: of a cluster, or one.
__device__ inline void meet([[maybe_unused]] int blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) return cooperative_groups::this_cluster().sync();
#endif
  __syncthreads();
}

}  // namespace ebb::gpu
