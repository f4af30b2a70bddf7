// What Hopper has beside its tensor cores (wgmma.cuh): barriers in shared memory that count bytes,
// bulk copies by the TMA, which one thread begins and a barrier sees the end of, rings of stages
// that such copies fill, and registers that warpgroups give each other.
//
// Barriers and copies of plain bytes are there from sm_90 on, the rest only in code for sm_90a:
// elsewhere has_wgmma is false and nothing of it may be instantiated.
#pragma once
#include <cuda.h>

#include "ebb/ops/mma.cuh"

namespace ebb::gpu::hopper {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool has_wgmma = true;
#else
inline constexpr bool has_wgmma = false;
#endif

inline constexpr int warpgroup = 128;

// Counts arrivals and bytes; it is in phase 0, then 1, then 0 … wait(phase) returns once that
// phase is over, and at once for phase 1 of a new barrier.
struct Barrier {
  std::uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ void arrive_expecting(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }
  __device__ void wait(int phase) {
    int over = 0;
    while (!over)
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.b32 %0, 1, 0, p;\n}\n"
          : "=r"(over)
          : "r"(shared_address(this)), "r"(phase)
          : "memory");
  }
};

// New barriers, or what threads wrote to shared memory, are seen by the TMA and by wgmma.
__device__ inline void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// `bytes` adjacent bytes, a multiple of 16 at both ends, whose arrival `there` counts.
__device__ inline void copy(void* to, const void* from, int bytes, Barrier& there) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&there))
      : "memory");
}

// The same of what is not read again: it leaves the second-level cache first.
__device__ inline void copy_passing(void* to, const void* from, int bytes, Barrier& there) {
  asm volatile(
      "{\n.reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], policy;\n}\n" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&there))
      : "memory");
}

// Writes x to `to` of another block of the cluster, and counts 8 bytes at its barrier `there`; both
// are given as what this block has at that place.
__device__ inline void send(std::uint64_t& to, std::uint64_t x, Barrier& there, int rank) {
  asm volatile(
      "{\n.reg .b32 to, there;\n"
      "mapa.shared::cluster.u32 to, %0, %3;\n"
      "mapa.shared::cluster.u32 there, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [to], %1, [there];\n}\n" ::"r"(
          shared_address(&to)),
      "l"(x), "r"(shared_address(&there)), "r"(rank)
      : "memory");
}

// The box of a tensor that begins at these coordinates, zeros beyond the tensor's ends.
__device__ inline void copy_box(void* to, const CUtensorMap& map, int x, int y, int z, int w,
                                Barrier& there) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared_address(&there))
      : "memory");
}

// Tiles come and go in order; tile t is in stage t % stages.
template <int stages>
struct Ring {
  Barrier full[stages], empty[stages];

  __device__ void init(int fetches, int readers) {
    for (int stage = 0; stage < stages; ++stage) {
      full[stage].init(fetches);
      empty[stage].init(readers);
    }
  }
  __device__ Barrier& room(int t) {
    empty[t % stages].wait(t / stages % 2 ^ 1);
    return full[t % stages];
  }
  __device__ void wait(int t) { full[t % stages].wait(t / stages % 2); }
  __device__ void release(int t) { empty[t % stages].arrive(); }
};

// Over `threads` threads that use barrier `id` of 1 to 15; 0 is __syncthreads().
template <int id, int threads>
__device__ bool any_of(bool mine) {
  int any;
  asm volatile(
      "{\n.reg .pred p, q;\n"
      "setp.ne.b32 p, %1, 0;\n"
      "barrier.cta.red.or.pred q, %2, %3, p;\n"
      "selp.b32 %0, 1, 0, q;\n}\n"
      : "=r"(any)
      : "r"(int{mine}), "n"(id), "n"(threads)
      : "memory");
  return any != 0;
}
__device__ inline void sync_warpgroup(int id) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "n"(warpgroup) : "memory");
}

// Dynamic shared memory, from a multiple of 1024 bytes on.
template <class Memory>
__device__ Memory& swizzled_memory() {
  extern __shared__ unsigned char memory[];
  const unsigned over = shared_address(memory) % 1024;
  return *reinterpret_cast<Memory*>(memory + (over == 0 ? 0 : 1024 - over));
}

// Every thread of a block begins with as many registers as fit all; warpgroups that need fewer give
// them up for those that need more.
template <int n>
__device__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

// Whether what runs here was compiled for such a GPU: code for another one has no barriers.
template <auto kernel>
bool has_barriers(std::string_view op) {
  static const bool there = [=] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), op);
    return attributes.sharedSizeBytes > 0;
  }();
  return there;
}

using EncodeTensorMap = decltype(cuTensorMapEncodeTiled);

// The driver's function that describes a tensor to the TMA, found at run time so that nothing is
// linked to the driver; or null.
inline EncodeTensorMap* tensor_map_encoder() {
  static EncodeTensorMap* const found = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    const auto status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                         cudaEnableDefault, &result);
#else
    const auto status =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &result);
#endif
    if (status != cudaSuccess) cudaGetLastError();
    const bool there = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<EncodeTensorMap*>(f) : nullptr;
  }();
  return found;
}

}  // namespace ebb::gpu::hopper
