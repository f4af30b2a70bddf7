// Blocks that run at one time, so that they may wait for each other: all of a grid; or neighbours
// in a cluster (sm_90), which also read each other's shared memory.
#pragma once
#include <cooperative_groups.h>

#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

inline constexpr int most_cluster_blocks = 8;  // that every GPU with clusters can keep together

inline bool have_clusters() { return compute_capability() >= 90; }

// Over a cluster, of what each of its blocks has; every thread gets the result, all must call it.
// Compiles for GPUs without clusters too, where nobody may launch it.
template <class T, class Op>
__device__ T cluster_reduce([[maybe_unused]] T x, [[maybe_unused]] Op op) {
#if __CUDA_ARCH__ >= 900
  __shared__ T mine;
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) mine = x;
  cluster.sync();
  x = *cluster.map_shared_rank(&mine, 0);
  for (unsigned r = 1; r < cluster.num_blocks(); ++r) x = op(x, *cluster.map_shared_rank(&mine, r));
  cluster.sync();  // the others have read `mine`: it may be written again, or its block end
#endif
  return x;
}

struct Together {
  unsigned grid;
  unsigned threads;
  size_t shared = 0;     // dynamic shared memory, in bytes
  unsigned cluster = 0;  // blocks of a cluster, a divisor of the grid; 0: all blocks are together
};

// launch() of such blocks.
template <class... P, class... A>
void launch_together(std::string_view op, void (*kernel)(P...), const Together& t,
                     const A&... arguments) {
  if (t.grid == 0) return;
  if (t.shared > 0)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(t.shared)),
          op);
  cudaLaunchAttribute together{};
  together.id =
      t.cluster > 0 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
  if (t.cluster > 0)
    together.val.clusterDim = {t.cluster, 1, 1};
  else
    together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = t.grid;
  config.blockDim = t.threads;
  config.dynamicSmemBytes = t.shared;
  config.stream = stream();
  config.attrs = &together;
  config.numAttrs = 1;
  note_launch(op, reinterpret_cast<const void*>(kernel), static_cast<int>(t.threads), t.shared);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), op);
}

}  // namespace ebb::gpu
