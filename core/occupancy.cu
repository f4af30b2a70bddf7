#include "ebb/core/occupancy.h"

#include "ebb/core/cuda.cuh"

namespace ebb::gpu {
namespace {

thread_local std::vector<KernelUse>* noted = nullptr;  // by the innermost kernels_of

}  // namespace

void note_launch(std::string_view op, const void* kernel, int threads, size_t shared) {
  if (!noted) [[likely]]
    return;
  cudaFuncAttributes needs{};
  check(cudaFuncGetAttributes(&needs, kernel), op);
  KernelUse use{.op = std::string(op),
                .threads = threads,
                .registers = needs.numRegs,
                .shared_bytes = static_cast<int>(needs.sharedSizeBytes + shared),
                .local_bytes = static_cast<int>(needs.localSizeBytes)};
  int device = 0;
  int most = 0;
  check(cudaGetDevice(&device), op);
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxThreadsPerMultiProcessor, device), op);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&use.blocks, kernel, threads, shared), op);
  use.warps = use.blocks * divide_up(threads, warp_size);
  use.max_warps = most / warp_size;
  noted->push_back(use);
}

std::vector<KernelUse> kernels_of(const std::function<void()>& f) {
  std::vector<KernelUse> kernels;
  const struct Restore {
    std::vector<KernelUse>* before;
    ~Restore() { noted = before; }
  } restore{noted};
  noted = &kernels;
  f();
  return kernels;
}

}  // namespace ebb::gpu
