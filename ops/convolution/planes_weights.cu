// The weight gradient of groups of few channels, over planes as in planes_convolve.cu. A thread
// makes sums of four adjacent taps, of the eight pixels that four points see by them:
//
//   dw[t] += dy[j + v] · x[j + v + t]      v, t < 4
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/planes.cuh"
#include "ebb/ops/convolution/second_stage.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int gradient_threads = 384;

// The weight gradient of one channel over the tiles of one slice: each warp has four taps of a row,
// and one of `parts` shares of the points. partial [slice, part, channel, c, tap].
template <class T, int width, bool plain>
__global__ void __launch_bounds__(gradient_threads, std::is_same_v<T, double> ? 1 : 3)
    plane_gradient(const __grid_constant__ Planes g, int quads, int all_quads, Slices slices,
                   std::int64_t tiles, const T* x, const T* dy, Compute<T>* partial) {
  using V = Compute<T>;
  extern __shared__ __align__(128) unsigned char bytes[];
  V* const tile = reinterpret_cast<V*>(bytes);
  V* const points = tile + g.places();
  auto* const at = reinterpret_cast<std::int64_t*>(points + g.deep * g.out.size());
  auto* const points_at = at + g.deep * g.c;
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  const int parts = blockDim.x / warp_size / quads, part = warp / quads;
  BlockIndex block;
  const std::int64_t channel = block.next(g.channels());
  BlockIndex digits{std::int64_t{block.next(divide_up(all_quads, quads))} * quads + warp % quads};
  const std::int64_t slice = block.left;
  const int u = digits.next(g.class_taps / 4) * 4, z = digits.next(g.classes);
  const int r = digits.next(g.h.taps), c = static_cast<int>(digits.left);
  const bool real = c < g.c;
  const std::int64_t first_c = channel / g.m * g.c;  // of the channel's group in an image of x
  const V* from = tile + ((c * g.in.rows + r * g.h.dilation) * g.in.pitch + z * g.in.phase + u);

  V sums[4] = {};
  const std::int64_t end = min(tiles, (slice + 1) * slices.length);
  for (std::int64_t i = slice * slices.length; i < end; ++i) {
    const auto tile_of = static_cast<unsigned>(i);
    const unsigned column = g.by_strips.quotient(tile_of), deep = g.by_bands.quotient(column);
    const int strip = static_cast<int>(tile_of - column * g.strips);
    const int band = static_cast<int>(column - deep * g.bands);
    __syncthreads();
    clear(tile, g.places());
    clear(points, g.deep * g.out.size());
    for (int q = threadIdx.x; q < g.deep * (g.c + 1); q += blockDim.x) {
      const bool of_x = q < g.deep * g.c;
      const std::int64_t image = std::int64_t{deep} * g.deep + (of_x ? q / g.c : q - g.deep * g.c);
      const std::int64_t plane =
          of_x ? image * g.groups * g.c + first_c + q % g.c : image * g.channels() + channel;
      at[q] = image >= g.images ? -1
              : of_x            ? plane * (std::int64_t{g.h.in} * g.w.in)
                                : plane * (std::int64_t{g.h.out} * g.w.out);
    }
    __syncthreads();
    stage_planes<width, plain>(g.in, band * g.rows * g.h.step + g.h.first,
                               strip * g.packs * 4 * g.w.step + g.w.first, g.deep * g.c, at, x,
                               tile);
    stage_planes<width, true>(g.out, band * g.rows, strip * g.packs * 4, g.deep, points_at, dy,
                              points);
    __syncthreads();
    if (!real) continue;
    for (int p = part * warp_size + lane; p < g.deep * g.rows * g.packs; p += parts * warp_size) {
      const int line = g.by_packs.quotient(p), q = g.by_rows.quotient(line);
      const V* at_point =
          from + ((q * g.c * g.in.rows + (line - q * g.rows) * g.h.step) * g.in.pitch +
                  (p - line * g.packs) * 4);
      const Pack<V, 4> low = four(at_point), high = four(at_point + 4), d = four(points + p * 4);
#pragma unroll
      for (int t = 0; t < 4; ++t)
#pragma unroll
        for (int v = 0; v < 4; ++v)
          sums[t] += d.v[v] * (v + t < 4 ? low.v[(v + t) % 4] : high.v[(v + t) % 4]);
    }
  }
  if (!real) return;
  V* const to =
      partial +
      ((((slice * parts + part) * g.channels() + channel) * g.c + c) * g.h.taps + r) * g.w.taps;
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const V sum = warp_reduce(sums[t], Sum{});
    const int tap = z + (u + t) * g.classes;
    if (lane == 0 && tap < g.w.taps) to[tap] = sum;
  }
}

}  // namespace

bool planes::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy,
                             Tensor& dw) {
  Planes p = planes_of(size, false);
  const std::int64_t each = dw.dtype() == Dtype::f64 ? 8 : 4;
  const int width = p.w.in % 2 == 0 && p.w.out % 2 == 0 ? 2 : 1;
  if (!thin(p.groups, p.m, p.c) || !p.adjacent() || !set_tiles(p, p.images, true, each, width))
    return false;
  constexpr int most_warps = gradient_threads / warp_size, most_tiles = 64;
  const int all_quads = p.c * p.h.taps * p.classes * (p.class_taps / 4);
  const int quads = std::min(all_quads, most_warps), parts = most_warps / quads;
  const std::int64_t tiles =
      std::int64_t{p.strips} * p.bands * divide_up<std::int64_t>(p.images, p.deep);
  if (tiles >= std::int64_t{1} << 31) return false;
  const std::int64_t blocks = p.channels() * divide_up(all_quads, quads);
  const std::int64_t wanted = std::max(divide_up<std::int64_t>(tiles, most_tiles),
                                       divide_up<std::int64_t>(6 * multiprocessors(), blocks));
  Slices slices(tiles, 1);
  slices.length = divide_up(tiles, std::min(tiles, wanted));
  slices.count = divide_up(tiles, slices.length);
  visit<float, double, bf16>(dw.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    Tensor partial = empty({slices.count * parts, dw.numel()}, {dtype_of<Compute<T>>, dw.device()});
    with_width(p, width, [&](auto pixels, auto plain) {
      launch(op, plane_gradient<T, decltype(pixels)::value, decltype(plain)::value>,
             grid_of(op, blocks * slices.count), quads * parts * warp_size,
             static_cast<size_t>(plane_bytes(p, true, each)), p, quads, all_quads, slices, tiles,
             x.data<T>(), dy.data<T>(), partial.data<Compute<T>>());
    });
    Tensor no_bias;
    launch_add_channel_slices<T>(weights_of(size), false, slices.count * parts, partial, x, dy, dw,
                                 no_bias);
  });
  return true;
}

}  // namespace ebb::gpu
