// Operands of a convolution as tensor cores take them: channels of a pixel, or of a tap, in chunks
// of 16 bytes, zeros beyond the last; for TF32, rounded to it.
#pragma once
#include "ebb/core/device.h"
#include "ebb/ops/convolution/gather.cuh"
#include "ebb/ops/mma_tiles.cuh"

namespace ebb::gpu::convolution {

template <class T>
__device__ T for_tensor_cores(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return to_tf32(x);
  } else {
    return x;
  }
}

constexpr int pack_threads = 256;

// x [images, channels, plane] → packed [images, chunks, plane]: images of one group each. A row of
// threads packs pixels of one chunk of one image.
template <class T>
__global__ void __launch_bounds__(pack_threads)
    pack_pixels(std::int64_t rows, int chunks, int channels, std::int64_t plane,
                std::int64_t row_blocks, const T* x, Chunk<T>* packed) {
  constexpr int width = pack_size<T>;
  BlockIndex block;
  const std::int64_t pixel = std::int64_t{block.next(row_blocks)} * blockDim.x + threadIdx.x;
  const std::int64_t row = block.left * blockDim.y + threadIdx.y;
  if (pixel >= plane || row >= rows) return;
  const auto image = static_cast<unsigned>(row) / static_cast<unsigned>(chunks);
  const int first = static_cast<int>(row - std::int64_t{image} * chunks) * width;
  const T* from = x + (std::int64_t{image} * channels + first) * plane + pixel;
  Chunk<T> chunk;
#pragma unroll
  for (int e = 0; e < width; ++e) {
    chunk.v[e] = first + e < channels ? for_tensor_cores(from[e * plane]) : T{};
  }
  packed[row * plane + pixel] = chunk;
}

// The order of k in a product: (four chunks of c, tap) if they are whole, else (tap, chunk of c).
__host__ __device__ inline bool whole_slabs(const Gather& g) {
  return g.c_packed % slab_chunks == 0;
}
struct KOrder {
  int tap, chunk;
  __device__ KOrder(const Gather& g, int taps, int slab, int lane) {
    const int k = slab * slab_chunks + lane;
    tap = whole_slabs(g) ? slab % taps : k / g.c_packed;
    chunk = whole_slabs(g) ? slab / taps * slab_chunks + lane : k % g.c_packed;
  }
};

// As pack_weights of gather.cuh: rows k of one class after another, each beginning a slab; columns
// m; zeros beyond.
template <class T>
__global__ void pack_filters(Gather g, std::int64_t slabs, const T* weight, Chunk<T>* packed) {
  constexpr int width = pack_size<T>;
  BlockIndex block;
  const std::int64_t m = std::int64_t{block.next(g.columns / 32)} * 32 + threadIdx.x;
  const int slab = block.next(slabs);
  const Class z = class_of(g, block.next(g.classes()), slab_chunks);
  const std::int64_t group = block.left;
  if (slab >= z.slabs) return;
  const int taps = z.h.taps * z.w.taps;
  const KOrder k(g, taps, slab, threadIdx.y);
  const std::int64_t first = std::int64_t{k.chunk} * width;
  const std::int64_t r = z.h.tap_first + std::int64_t{k.tap / z.w.taps} * z.h.tap_step;
  const std::int64_t s = z.w.tap_first + std::int64_t{k.tap % z.w.taps} * z.w.tap_step;
  const T* from = weight + group * g.m * g.c * g.h.kernel * g.w.kernel + m * g.m_stride +
                  first * g.c_stride + r * g.w.kernel + s;
  const bool real = m < g.m && k.tap < taps;
  Chunk<T> chunk;
#pragma unroll
  for (int e = 0; e < width; ++e)
    chunk.v[e] = real && first + e < g.c ? for_tensor_cores(from[e * g.c_stride]) : T{};
  const std::int64_t row = z.first_row + std::int64_t{slab} * slab_chunks + threadIdx.y;
  packed[(group * g.rows + row) * g.columns + m] = chunk;
}

// Launchers.

template <class T>
Tensor packed_pixels(std::string_view op, std::int64_t images, int channels, std::int64_t plane,
                     const Tensor& x) {
  const int chunks = divide_up(channels, pack_size<T>);
  const std::int64_t rows = images * chunks;
  Tensor packed = empty({rows, plane, pack_size<T>}, x.options());
  unsigned across = 32;  // threads along a plane: a few at its end are idle
  while (across < pack_threads && across < plane) across *= 2;
  const unsigned down = pack_threads / across;
  const std::int64_t row_blocks = divide_up<std::int64_t>(plane, across);
  const std::int64_t blocks = row_blocks * divide_up<std::int64_t>(rows, down);
  launch(op, pack_pixels<T>, grid_of(op, blocks), dim3(across, down), 0, rows, chunks, channels,
         plane, row_blocks, x.data<T>(), reinterpret_cast<Chunk<T>*>(packed.data<T>()));
  return packed;
}

template <class T>
Tensor packed_filters(std::string_view op, const Gather& g, const Tensor& weight) {
  Tensor packed = empty({g.groups, g.rows, g.columns, pack_size<T>}, weight.options());
  const std::int64_t slabs = g.rows / slab_chunks;
  const std::int64_t blocks = g.columns / 32 * slabs * g.classes() * g.groups;
  launch(op, pack_filters<T>, grid_of(op, blocks), dim3(32, slab_chunks), 0, g, slabs,
         weight.data<T>(), reinterpret_cast<Chunk<T>*>(packed.data<T>()));
  return packed;
}

template <class T>
const Chunk<T>* chunks_of(const Tensor& packed) {
  return reinterpret_cast<const Chunk<T>*>(packed.data<T>());
}

// Whether tensor cores compute in this type, as far as the user allows it.
inline bool on_tensor_cores(Dtype dtype) {
  return compute_capability() >= 80 &&
         (dtype == Dtype::bf16 || (dtype == Dtype::f32 && tf32_allowed()));
}

// Whether that many products are worth packing their operands.
inline bool worth_packing(std::int64_t products) { return products >= std::int64_t{1} << 26; }

}  // namespace ebb::gpu::convolution
