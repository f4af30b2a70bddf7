// Convolutions of groups of few channels (depthwise), of which tiled products would be mostly
// padding. A block takes rows of some planes into shared memory, zeros around them. A thread then
// makes four adjacent points of the eight pixels that they see:
//
//   out[j + v] += weight[t] · in[j + v + t]      v, t < 4
//
// The input gradient is such a convolution of dy, with the kernel turned and zeros between pixels.
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/planes.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int plane_threads = 256;

// sums[v] += Σ over the taps of one channel, from the place that the first one sees.
template <class V>
__device__ void add_taps(const Planes& g, const V* first, const V* taps, V (&sums)[4]) {
  for (int r = 0; r < g.h.taps; ++r, first += g.h.dilation * g.in.pitch)
    for (int z = 0; z < g.classes; ++z, taps += g.class_taps) {
      const int count = g.taps_of(z);
      if (g.adjacent()) {
        const V* from = first + z * g.in.phase;
        Pack<V, 4> low = four(from);
        for (int u = 0; u < count; u += 4) {
          const Pack<V, 4> high = four(from + u + 4), weight = four(taps + u);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (u + i < count)
#pragma unroll
              for (int v = 0; v < 4; ++v)
                sums[v] += weight.v[i] * (v + i < 4 ? low.v[(v + i) % 4] : high.v[(v + i) % 4]);
          low = high;
        }
      } else {
        const int place = z * g.w.dilation, more = g.classes * g.w.dilation / g.w.step;
        const V* from = first + place % g.w.step * g.in.phase + place / g.w.step;
        for (int u = 0; u < count; ++u)
#pragma unroll
          for (int v = 0; v < 4; ++v) sums[v] += taps[u] * from[u * more + v];
      }
    }
}

// Writes the first `left` of four points of a row of so many.
template <class T>
__device__ void store_four(T* out, const Compute<T> (&sums)[4], Compute<T> add, int left, int row) {
  Pack<T, 4> four;
#pragma unroll
  for (int v = 0; v < 4; ++v) four.v[v] = narrow<T>(sums[v] + add);
  if (row % 4 == 0) {
    store(reinterpret_cast<Pack<T, 4>*>(out), four);
  } else if (row % 2 == 0) {
#pragma unroll
    for (int v = 0; v < 4; v += 2)
      if (v < left) store(reinterpret_cast<Pack<T, 2>*>(out + v), {four.v[v], four.v[v + 1]});
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v)
      if (v < left) out[v] = four.v[v];
  }
}

// Forward, and the input gradient.
template <class T, int width, bool plain>
__global__ void __launch_bounds__(plane_threads)
    convolve_planes(const __grid_constant__ Planes g, const T* in, const T* weight, const T* bias,
                    T* out) {
  using V = Compute<T>;
  extern __shared__ __align__(128) unsigned char bytes[];
  V* const tile = reinterpret_cast<V*>(bytes);
  V* const taps = tile + g.places();
  auto* const at = reinterpret_cast<std::int64_t*>(taps + g.deep * g.taps());
  const unsigned column = g.by_strips.quotient(blockIdx.x);
  const int strip = static_cast<int>(blockIdx.x - column * g.strips);
  const unsigned deep = g.by_bands.quotient(column);
  const int band = static_cast<int>(column - deep * g.bands);
  const unsigned first_plane = deep * g.deep, channels = static_cast<unsigned>(g.channels());
  const unsigned planes = static_cast<unsigned>(g.images) * channels;

  clear(tile, g.places());
  for (int i = threadIdx.x; i < g.deep * g.c; i += plane_threads) {
    const unsigned plane = first_plane + i / g.c;
    at[i] = plane >= planes ? -1
                            : (std::int64_t{g.by_m.quotient(plane)} * g.c + i % g.c) *
                                  (std::int64_t{g.h.in} * g.w.in);
  }
  for (int i = threadIdx.x; i < g.deep * g.taps(); i += plane_threads) {
    const int line = i / g.class_taps, row = line / g.classes, r = row % g.h.taps;
    const int c = row / g.h.taps % g.c, q = row / g.h.taps / g.c;
    const int t = line % g.classes + i % g.class_taps * g.classes;
    const unsigned k = (first_plane + q) % channels, m = k % g.m;
    const T* from = weight + std::int64_t{k - m} * g.c * (g.h.taps * g.w.taps) + m * g.m_stride +
                    c * g.c_stride;
    const int tap = r * g.w.taps + t, last = g.h.taps * g.w.taps - 1;
    taps[i] = t < g.w.taps ? widen(from[g.turned ? last - tap : tap]) : V(0);
  }
  __syncthreads();
  stage_planes<width, plain>(g.in, band * g.rows * g.h.step + g.h.first,
                             strip * g.packs * 4 * g.w.step + g.w.first, g.deep * g.c, at, in,
                             tile);
  __syncthreads();

  for (int i = threadIdx.x; i < g.deep * g.rows * g.packs; i += plane_threads) {
    const int line = g.by_packs.quotient(i), q = g.by_rows.quotient(line);
    const int j = i - line * g.packs, row = line - q * g.rows;
    const std::int64_t plane = first_plane + q;
    const int h = band * g.rows + row, w = (strip * g.packs + j) * 4;
    if (plane >= planes || h >= g.h.out || w >= g.w.out) continue;
    V sums[4] = {};
    for (int c = 0; c < g.c; ++c)
      add_taps(g, tile + (((q * g.c + c) * g.in.rows + row * g.h.step) * g.in.pitch + 4 * j),
               taps + (q * g.c + c) * (g.h.taps * g.classes * g.class_taps), sums);
    const V add = bias ? widen(bias[plane % channels]) : V(0);
    store_four(out + ((plane * g.h.out + h) * g.w.out + w), sums, add, g.w.out - w, g.w.out);
  }
}

}  // namespace

bool planes::convolve(const Conv2dSize& size, bool transposed, const Tensor& in,
                      const Tensor& weight, const Tensor& bias, Tensor& out) {
  Planes p = planes_of(size, transposed);
  const std::int64_t each = out.dtype() == Dtype::f64 ? 8 : 4;
  const int width = p.w.in % 2 == 0 ? 2 : 1;
  const std::int64_t planes = p.images * p.channels();
  if (!thin(p.groups, p.m, p.c) || planes >= std::int64_t{1} << 31 ||
      !set_tiles(p, planes, false, each, width))
    return false;
  const std::int64_t blocks =
      std::int64_t{p.strips} * p.bands * divide_up<std::int64_t>(planes, p.deep);
  visit<float, double, bf16>(out.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    with_width(p, width, [&](auto pixels, auto plain) {
      launch(op, convolve_planes<T, decltype(pixels)::value, decltype(plain)::value>,
             grid_of(op, blocks), plane_threads, static_cast<size_t>(plane_bytes(p, false, each)),
             p, in.data<T>(), weight.data<T>(), bias.defined() ? bias.data<T>() : nullptr,
             out.data<T>());
    });
  });
  return true;
}

}  // namespace ebb::gpu
