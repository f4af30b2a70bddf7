// The CUDA runtime behind core/device.h and core/storage.h.
#include <array>
#include <mutex>

#include "ebb/core/basic.h"
#include "ebb/core/cuda.cuh"
#include "ebb/core/run.h"

namespace ebb::gpu {
namespace {

constexpr int max_devices = 16;
thread_local int current = -1;  // what use() last chose on this thread

struct Properties {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  int block_memory = 0;
  int capability = 0;
};

// Made at the first use of a device, kept to the end: there is no safe moment to destroy streams.
const Properties& properties() {
  static std::array<Properties, max_devices> all;
  static std::array<std::once_flag, max_devices> once;
  const int d = current < 0 ? 0 : current;
  std::call_once(once[d], [&] {
    int major = 0;
    int minor = 0;
    Properties& p = all[d];
    check(cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount, d), "cuda");
    check(cudaDeviceGetAttribute(&p.block_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, d),
          "cuda");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d), "cuda");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, d), "cuda");
    p.capability = 10 * major + minor;
    check(cudaStreamCreateWithFlags(&p.stream, cudaStreamNonBlocking), "cuda");
  });
  return all[d];
}

}  // namespace

// The runtime remembers the last error for whoever asks next: it is cleared here, or the next good
// launch would be blamed. Errors that leave the context unusable come back at every call.
void check(cudaError_t status, std::string_view op) {
  if (status == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();
  raise(Kind::cuda, op, "a CUDA call failed", cudaGetErrorString(status), "success");
}

void use(Device device) {
  if (current == device.index) return;
  check(cudaSetDevice(device.index), "cuda");
  current = device.index;
}

cudaStream_t stream() { return properties().stream; }
int multiprocessors() { return properties().multiprocessors; }
int block_memory() { return properties().block_memory; }
int compute_capability() { return properties().capability; }

int device_count() {
  static const int count = [] {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return std::min(n, max_devices);
    cudaGetLastError();
    return 0;
  }();
  return count;
}

void synchronize() { check(cudaStreamSynchronize(stream()), "synchronize"); }

void copy_bytes(void* to, const void* from, std::int64_t bytes, bool wait) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream()), "copy");
  if (wait) synchronize();
}

void* allocate(std::int64_t bytes, std::int64_t* free_bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, static_cast<size_t>(bytes));
  if (status == cudaSuccess) return block;
  cudaGetLastError();  // an allocation that failed must not fail the next launch's check
  require(status == cudaErrorMemoryAllocation, Kind::cuda, "allocate", "cudaMalloc failed",
          cudaGetErrorString(status), "success");
  size_t available = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&available, &total), "allocate");
  *free_bytes = static_cast<std::int64_t>(available);
  return nullptr;
}

// Called from destructors: a context that is gone takes its memory along.
void release(void* block) {
  if (cudaFree(block) != cudaSuccess) cudaGetLastError();
}

void fill_bytes(void* block, int byte, std::int64_t bytes) {
  check(cudaMemsetAsync(block, byte, static_cast<size_t>(bytes), stream()), "fill");
}

}  // namespace ebb::gpu
