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

// Launchers.

template <class T>
Tensor packed_pixels(std::int64_t images, int channels, std::int64_t plane, const Tensor& x) {
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
