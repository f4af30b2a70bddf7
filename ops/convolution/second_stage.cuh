// The second stage of a weight gradient: what blocks have summed over slices of the pixels is
// added, in a fixed order. NaN is asked for again by the definition, as zeros beside the images,
// which tiles have, may have met infinities.
#pragma once
#include "ebb/ops/convolution/geometry.cuh"
#include "ebb/ops/parts.cuh"

namespace ebb::gpu::convolution {

// An element of dw by its definition, of whose terms every `step`-th is added, until it is NaN.
template <class Sum, class T>
__device__ Sum add_terms(const Weights& g, const T* x, const T* dy, std::int64_t channel, int c,
                         int r, int s, std::int64_t first, int step) {
  const std::int64_t group = channel / g.m;
  const std::int64_t plane = std::int64_t{g.p} * g.q;
  Sum sum = 0;
  for (std::int64_t pixel = first; pixel < g.pixels && !isnan(sum); pixel += step) {
    const std::int64_t image = pixel / plane;
    const std::int64_t at = pixel % plane;
    const int h = static_cast<int>(at / g.q) * g.h_stride - g.h_padding + r * g.h_dilation;
    const int w = static_cast<int>(at % g.q) * g.w_stride - g.w_padding + s * g.w_dilation;
    if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
    const std::int64_t row = ((image * g.groups + group) * g.c + c) * g.h + h;
    sum += static_cast<Sum>(widen(x[row * g.w + w])) *
           widen(dy[(image * g.groups * g.m + channel) * plane + at]);
  }
  return sum;
}

constexpr int second_threads = 256;

// dw [channel, c, tap] and db, if they have been summed, too, [channel] = Σ over slices of partial
// [slice, channel, (c, tap) or bias].
template <class T>
__global__ void __launch_bounds__(second_threads)
    add_channel_slices(const __grid_constant__ Weights g, bool biased, std::int64_t slices,
                       const Compute<T>* partial, const T* x, const T* dy, T* dw, T* db) {
  await_previous();
  const std::int64_t columns = g.columns(), results = columns + biased;
  const std::int64_t size = std::int64_t{g.groups} * g.m * results;
  const std::int64_t i = std::int64_t{blockIdx.x} * second_threads + threadIdx.x;
  if (i >= size) return;
  Compute<T> sum = 0;
#pragma unroll 8
  for (std::int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
  const std::int64_t channel = i / results, column = i % results;
  if (column == columns) {
    if (db) db[channel] = narrow<T>(sum);
    return;
  }
  if (isnan(sum)) {
    BlockIndex digits{column};
    const int s = digits.next(g.s), r = digits.next(g.r), c = static_cast<int>(digits.left);
    sum = static_cast<Compute<T>>(add_terms<double>(g, x, dy, channel, c, r, s, 0, 1));
  }
  dw[channel * columns + column] = narrow<T>(sum);
}

// dw [filter, c, tap] = Σ over slices of partial [slice,
// filter, chunk, tap, c in the chunk], in a fixed order. A thread adds one chunk of every eighth
// slice, and of 8 such sums one number.
template <class T>
__global__ void __launch_bounds__(second_threads)
    add_filter_slices(const __grid_constant__ Weights g, std::int64_t size, std::int64_t slices,
                      int chunks, const float* partial, const T* x, const T* dy, T* dw) {
  constexpr int width = pack_size<T>;
  __shared__ float sums[8][width][32];
  const std::int64_t i = std::int64_t{blockIdx.x} * 32 + threadIdx.x;
  float sum[width] = {};
  if (i < size / width) {
#pragma unroll 2
    for (std::int64_t slice = threadIdx.y; slice < slices; slice += 8) {
      const auto add =
          *reinterpret_cast<const Pack<float, width>*>(partial + slice * size + i * width);
#pragma unroll
      for (int e = 0; e < width; ++e) sum[e] += add.v[e];
    }
  }
#pragma unroll
  for (int e = 0; e < width; ++e) sums[threadIdx.y][e][threadIdx.x] = sum[e];
  __syncthreads();
  const int taps = g.r * g.s, tap = static_cast<int>(i % taps), e = static_cast<int>(threadIdx.y);
  const int c = static_cast<int>(i / taps % chunks) * width + e;
  if (e >= width || c >= g.c || i >= size / width) return;
  float all = sums[0][e][threadIdx.x];
#pragma unroll
  for (int row = 1; row < 8; ++row) all += sums[row][e][threadIdx.x];
  const std::int64_t filter = i / taps / chunks;
  if (isnan(all))
    all = static_cast<float>(add_terms<double>(g, x, dy, filter, c, tap / g.s, tap % g.s, 0, 1));
  dw[(filter * g.c + c) * taps + tap] = narrow<T>(all);
}

// Launchers.

// `db` may be undefined, also where it has been summed.
template <class T>
void launch_add_channel_slices(const Weights& g, bool biased, std::int64_t slices,
                               const Tensor& partial, const Tensor& x, const Tensor& dy, Tensor& dw,
                               Tensor& db) {
  launch_next(op, add_channel_slices<T>,
              grid_of(op, divide_up<std::int64_t>(partial.numel() / slices, second_threads)),
              second_threads, g, biased, slices, partial.data<Compute<T>>(), x.data<T>(),
              dy.data<T>(), dw.data<T>(), db.defined() ? db.data<T>() : nullptr);
}

// `partial` has `chunks` chunks of channels.
template <class T>
void launch_add_filter_slices(const Weights& g, std::int64_t slices, int chunks,
                              const Tensor& partial, const Tensor& x, const Tensor& dy,
                              Tensor& dw) {
  const std::int64_t size = partial.numel() / slices;
  launch(op, add_filter_slices<T>, grid_of(op, divide_up<std::int64_t>(size / pack_size<T>, 32)),
         dim3(32, 8), 0, g, size, slices, chunks, partial.data<float>(), x.data<T>(), dy.data<T>(),
         dw.data<T>());
}

}  // namespace ebb::gpu::convolution
