// Column reductions on the GPU in two stages: sums over n of [outer, n, inner], a bias gradient,
// statistics of [N, C].
//
// Stage 1: a block of 32 × 8 threads owns 32 columns and one slice of n; it writes partial sums to
// [slices, outer · inner] in double. Stage 2: one thread a column adds the slices in order and
// gives the totals to `finish`. No atomics: the same bits at every run.
//
//   struct Terms { const T* x; __device__ void operator()(int64 i, int64 column, C (&t)[1]) …};
//   struct Finish { T* y; __device__ void operator()(int64 column, const double (&sum)[1]) … };
//
// i is an element's place in x, column its outer · inner + inner place.
#pragma once
#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"

namespace ebb::gpu {

inline constexpr int column_tile = 32;
inline constexpr int column_threads = 8;  // that share a column
inline constexpr int column_unroll = 8;   // rows in flight a thread

template <class C, int count, class Terms>
__global__ void __launch_bounds__(column_tile* column_threads)
    column_partials_kernel(Terms terms, std::int64_t outer, std::int64_t n, std::int64_t inner,
                           std::int64_t chunk, double* partial) {
  const std::int64_t tiles = divide_up<std::int64_t>(inner, column_tile);
  const std::int64_t o = blockIdx.x / tiles;
  const std::int64_t i = blockIdx.x % tiles * column_tile + threadIdx.x;
  const std::int64_t first = blockIdx.y * chunk;
  const std::int64_t end = n < first + chunk ? n : first + chunk;
  const std::int64_t column = o * inner + i;
  double sum[count] = {};
  for (std::int64_t k = first + threadIdx.y; i < inner && k < end;
       k += column_threads * column_unroll) {
    C part[count] = {};
#pragma unroll
    for (int u = 0; u < column_unroll; ++u) {
      const std::int64_t row = k + u * column_threads;
      C term[count] = {};
      if (row < end) terms((o * n + row) * inner + i, column, term);
#pragma unroll
      for (int q = 0; q < count; ++q) part[q] += term[q];
    }
#pragma unroll
    for (int q = 0; q < count; ++q) sum[q] += part[q];
  }
  __shared__ double shared[count][column_threads][column_tile];
#pragma unroll
  for (int q = 0; q < count; ++q) shared[q][threadIdx.y][threadIdx.x] = sum[q];
  __syncthreads();
  if (threadIdx.y != 0 || i >= inner) return;
#pragma unroll
  for (int q = 0; q < count; ++q) {
    for (int t = 1; t < column_threads; ++t) sum[q] += shared[q][t][threadIdx.x];
    partial[(blockIdx.y * count + q) * outer * inner + column] = sum[q];
  }
}

template <int count, class Finish>
__global__ void __launch_bounds__(128)
    column_finish_kernel(Finish finish, std::int64_t columns, std::int64_t slices,
                         const double* partial) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (column >= columns) return;
  double sum[count] = {};
#pragma unroll 4
  for (std::int64_t s = 0; s < slices; ++s)
#pragma unroll
    for (int q = 0; q < count; ++q) sum[q] += partial[(s * count + q) * columns + column];
  finish(column, sum);
}

// Slices that make about 2048 blocks, enough to fill every GPU there is; the device's own number of
// multiprocessors does not enter, so that all GPUs add in the same order.
inline std::int64_t column_slices(std::int64_t tiles, std::int64_t n) {
  constexpr std::int64_t blocks = 2048;
  constexpr std::int64_t shortest = column_threads * column_unroll;
  const std::int64_t wanted = divide_up<std::int64_t>(blocks, tiles > 0 ? tiles : 1);
  const std::int64_t most = divide_up<std::int64_t>(n, shortest);
  const std::int64_t slices = wanted < most ? wanted : most;
  return slices < 1 ? 1 : slices < 1024 ? slices : 1024;
}

template <class C, int count, class Terms, class Finish>
void columns(std::string_view op, const Terms& terms, const Finish& finish, std::int64_t outer,
             std::int64_t n, std::int64_t inner, Device device) {
  const std::int64_t tiles = outer * divide_up<std::int64_t>(inner, column_tile);
  const std::int64_t slices = column_slices(tiles, n);
  const std::int64_t chunk = divide_up<std::int64_t>(n, slices);
  const std::int64_t all = outer * inner;
  if (all == 0) return;
  Tensor partial = empty({slices, count, all}, {Dtype::f64, device});
  launch(op, column_partials_kernel<C, count, Terms>,
         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(slices)),
         dim3(column_tile, column_threads), 0, terms, outer, n, inner, chunk,
         partial.data<double>());
  launch(op, column_finish_kernel<count, Finish>,
         dim3(static_cast<unsigned>(divide_up<std::int64_t>(all, 128))), 128, 0, finish, all,
         slices, static_cast<const Tensor&>(partial).data<double>());
}

}  // namespace ebb::gpu
