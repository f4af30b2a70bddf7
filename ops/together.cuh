// Blocks that run at one time, so that they may wait for each other: all of a grid; or neighbours
// in a cluster (sm_90), which also read each other's shared memory.
#pragma once
#include <cooperative_groups.h>

#include <map>
#include <mutex>
#include <utility>

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
  dim3 grid;
  dim3 threads;
  size_t shared = 0;     // dynamic shared memory, in bytes
  unsigned cluster = 0;  // blocks of a cluster, a divisor of the grid; 0: all blocks are together
};

// How the runtime is told, with one attribute; it points into itself.
struct TogetherConfig {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  TogetherConfig(const Together& t, cudaStream_t stream) {
    attribute.id =
        t.cluster > 0 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
    if (t.cluster > 0)
      attribute.val.clusterDim = {t.cluster, 1, 1};
    else
      attribute.val.cooperative = 1;
    config.gridDim = t.grid;
    config.blockDim = t.threads;
    config.dynamicSmemBytes = t.shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  TogetherConfig(const TogetherConfig&) = delete;
  TogetherConfig& operator=(const TogetherConfig&) = delete;
};

// What such a kernel may use: its dynamic memory, and clusters beyond most_cluster_blocks.
template <class Kernel>
void allow_together(std::string_view op, Kernel kernel, const Together& t) {
  if (t.shared > 0)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(t.shared)),
          op);
  if (t.cluster > most_cluster_blocks)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), op);
}

// Clusters of `kernel` that this GPU runs at a time, asked once; 0 if it has none so large.
template <auto kernel>
int clusters_at_a_time(std::string_view op, const Together& t) {
  static std::map<std::pair<unsigned, size_t>, int> known;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const auto [found, fresh] = known.try_emplace({t.cluster, t.shared}, 0);
  if (!fresh || t.shared > static_cast<size_t>(block_memory())) return found->second;
  allow_together(op, kernel, t);
  const TogetherConfig together(t, nullptr);
  if (cudaOccupancyMaxActiveClusters(&found->second, kernel, &together.config) != cudaSuccess) {
    cudaGetLastError();
    found->second = 0;
  }
  return found->second;
}

// launch() of such blocks.
template <class... P, class... A>
void launch_together(std::string_view op, void (*kernel)(P...), const Together& t,
                     const A&... arguments) {
  if (t.grid.x == 0) return;
  allow_together(op, kernel, t);
  const TogetherConfig together(t, stream());
  note_launch(op, reinterpret_cast<const void*>(kernel),
              static_cast<int>(t.threads.x * t.threads.y), t.shared);
  check(cudaLaunchKernelEx(&together.config, kernel, static_cast<P>(arguments)...), op);
}

}  // namespace ebb::gpu
