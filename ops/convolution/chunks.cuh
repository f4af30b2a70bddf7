// Operands of a convolution as tensor cores take them: channels of a pixel, or of a tap, in chunks
// of 16 bytes, zeros beyond the last; for TF32, rounded to it.
#pragma once
#include "ebb/core/device.h"
#include "ebb/ops/convolution/geometry.cuh"
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

// How numbers are packed: as they are; as tensor cores take them; or in float32's exactness as two
// TF32 numbers each, whose products but low · low add up to theirs:
//
//   x = high + low,   high = TF32(x),   low = TF32(x − high),   |x − high − low| ≤ 2⁻²³ |x|
//
// High parts near the largest number are cut, as they would round to infinity. What is not finite
// is a low part, so that it meets each number once, and its high part ±1.
enum class Form { as_is, rounded, halves };
template <Form form>
inline constexpr int parts_of = form == Form::halves ? 2 : 1;

struct Halves {
  float high, low;
  __device__ explicit Halves(float x) {
    const float rounded = to_tf32(x);
    const float cut = __uint_as_float(__float_as_uint(x) & 0xffffe000u);
    high = !isfinite(x) ? copysignf(1.f, x) : isfinite(rounded) ? rounded : cut;
    low = isfinite(x) ? to_tf32(x - high) : rounded;
  }
};

// A chunk, or two.
template <class T, Form form>
struct FormedChunk {
  Chunk<T> part[parts_of<form>] = {};
  __device__ void set(int e, T x) {
    if constexpr (form == Form::halves) {
      const Halves both(x);
      part[0].v[e] = both.high;
      part[1].v[e] = both.low;
    } else {
      part[0].v[e] = form == Form::rounded ? for_tensor_cores(x) : x;
    }
  }
  // The low one `apart` chunks after the high one.
  __device__ void store(Chunk<T>* to, std::int64_t apart) const {
#pragma unroll
    for (int i = 0; i < parts_of<form>; ++i) to[i * apart] = part[i];
  }
};

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

// The second stage of sums of chunks: dw [filter, c, tap] = Σ over slices of partial [slice,
// filter, chunk, tap, c in the chunk], in a fixed order. A thread adds one chunk of every eighth
// slice, and of 8 such sums one number. NaN is asked for again, as zeros beside the images may have
// met infinities.
template <class T>
__global__ void __launch_bounds__(256)
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

// `partial` has `chunks` chunks of channels.
template <class T>
void launch_add_filter_slices(std::string_view op, const Weights& g, std::int64_t slices,
                              int chunks, const Tensor& partial, const Tensor& x, const Tensor& dy,
                              Tensor& dw) {
  const std::int64_t size = partial.numel() / slices;
  launch(op, add_filter_slices<T>, grid_of(op, divide_up<std::int64_t>(size / pack_size<T>, 32)),
         dim3(32, 8), 0, g, size, slices, chunks, partial.data<float>(), x.data<T>(), dy.data<T>(),
         dw.data<T>());
}

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

// Whether each point of out is the pixel in its place, in whole chunks.
template <class T>
bool in_place(const Gather& g) {
  const auto along = [](const Side& side) {
    return side.kernel == 1 && side.stride == 1 && side.padding == 0;
  };
  return along(g.h) && along(g.w) && g.in_plane % pack_size<T> == 0;
}

}  // namespace ebb::gpu::convolution
