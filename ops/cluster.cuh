// Thread-block clusters (sm_90): neighbouring blocks that wait for and read from each other.
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

// launch() with `blocks` neighbours of the grid, a divisor of it, in one cluster.
template <class... P, class... A>
void launch_clusters(std::string_view op, void (*kernel)(P...), unsigned grid, unsigned threads,
                     unsigned blocks, const A&... arguments) {
  if (grid == 0) return;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.stream = stream();
  config.attrs = &cluster;
  config.numAttrs = 1;
  note_launch(op, reinterpret_cast<const void*>(kernel), static_cast<int>(threads), 0);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), op);
}

}  // namespace ebb::gpu
