#include "ebb/nn/multi_tensor.cuh"
#include "ebb/nn/optimizer.h"

namespace ebb::nn {
namespace {

using ebb::gpu::block_reduce;
using ebb::gpu::Compute;
using ebb::gpu::narrow;
using ebb::gpu::widen;
using gpu::chunk_threads;

// partial[block] = Σ g² of the block's chunk, in double.
template <class T>
__global__ void __launch_bounds__(chunk_threads)
    squares_kernel(const __grid_constant__ gpu::Table<T, 1> table, double* partial) {
  const gpu::Place at = gpu::place_of(table, blockIdx.x);
  double sum = 0;
  for (std::int64_t i = at.begin + threadIdx.x; i < at.end; i += chunk_threads) {
    const double g = widen(table.data[0][at.tensor][i]);
    sum += g * g;
  }
  sum = block_reduce<chunk_threads>(sum, ebb::gpu::Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(chunk_threads)
    root_kernel(const double* partial, std::int64_t n, T* norm) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += chunk_threads) sum += partial[i];
  sum = block_reduce<chunk_threads>(sum, ebb::gpu::Sum{});
  if (threadIdx.x == 0) *norm = narrow<T>(static_cast<Compute<T>>(sqrt(sum)));
}

template <class T>
struct Clip {
  const T* norm;
  double max_norm;
  __device__ void operator()(double, T& g) const {
    const double scale = max_norm / widen(*norm);
    if (scale < 1) g = narrow<T>(widen(g) * static_cast<Compute<T>>(scale));
  }
};

}  // namespace

void gpu::multi_norm(const Tensors& tensors, Tensor& norm) {
  std::int64_t chunks = 0;
  for (const Tensor& t : tensors) chunks += chunks_of(t.numel());
  Tensor partial = empty({chunks}, {Dtype::f64, norm.device()});
  visit<float, double, bf16>(norm.dtype(), "clip_grad_norm", [&](auto zero) {
    using T = decltype(zero);
    for_each_table<T, 1>({tensors}, {}, [&](const Table<T, 1>& table, int n, std::int64_t before) {
      launch("clip_grad_norm", squares_kernel<T>, dim3(static_cast<unsigned>(n)), chunk_threads, 0,
             table, partial.data<double>() + before);
    });
    launch("clip_grad_norm", root_kernel<T>, 1, chunk_threads, 0, partial.data<double>(), chunks,
           norm.data<T>());
  });
}

void gpu::multi_clip(const Tensors& tensors, const Tensor& norm, double max_norm) {
  visit<float, double, bf16>(norm.dtype(), "clip_grad_norm", [&](auto zero) {
    using T = decltype(zero);
    multi_map<T, 1>("clip_grad_norm", Clip<T>{norm.data<T>(), max_norm}, {tensors});
  });
}

}  // namespace ebb::nn
