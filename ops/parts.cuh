// Second stages on the GPU: what many blocks have left in memory is added up, in a fixed order.
#pragma once
#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

// launch() of a kernel that may be put on the GPU while the one before it ends (sm_90): about a
// microsecond less between them. All its threads call await_previous() first of all.
template <class... P, class... A>
void launch_next(std::string_view op, void (*kernel)(P...), dim3 grid, dim3 block,
                 const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream();
  config.attrs = &early;
  config.numAttrs = compute_capability() >= 90 ? 1 : 0;
  note_launch(op, reinterpret_cast<const void*>(kernel),
              static_cast<int>(block.x * block.y * block.z), 0);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), op);
}

// Until the kernels before this one are over, and what they wrote is there.
__device__ inline void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The same as block_reduce() for the first thread only, whose warp alone goes on with what the
// warps found: sums of doubles by all of 1024 threads would take longer than their loads.
template <int threads, class T, class Op>
__device__ T block_reduce_to_first(T x, Op op) {
  constexpr int warps = threads / warp_size;
  x = warp_reduce(x, op);
  if constexpr (warps > 1) {
    __shared__ T partial[warps];
    const int lane = threadIdx.x % warp_size;
    if (lane == 0) partial[threadIdx.x / warp_size] = x;
    __syncthreads();
    if (threadIdx.x < warp_size) x = warp_reduce<warps>(partial[lane % warps], op);
  }
  return x;
}

inline constexpr int part_threads = 512;

// finish(row, Σ part[row, :]) for rows of `count` parts, a block each.
template <class Finish>
__global__ void __launch_bounds__(part_threads)
    add_parts_kernel(Finish finish, std::int64_t count, const double* part) {
  await_previous();
  const std::int64_t row = blockIdx.x;
  double sum = 0;
#pragma unroll 8
  for (std::int64_t i = threadIdx.x; i < count; i += part_threads) sum += part[row * count + i];
  sum = block_reduce_to_first<part_threads>(sum, Sum{});
  if (threadIdx.x == 0) finish(row, sum);
}

template <class Finish>
void add_parts(std::string_view op, const Finish& finish, std::int64_t rows, std::int64_t count,
               const double* part) {
  launch_next(op, add_parts_kernel<Finish>, dim3(static_cast<unsigned>(rows)), part_threads, finish,
              count, part);
}

}  // namespace ebb::gpu
