// Convolutions of groups of few channels (depthwise), of which tiled products would be mostly
// padding. A block takes rows of some planes into shared memory, zeros around them. A thread then
// makes four adjacent points, or sums of four adjacent taps, of the eight pixels that they see:
//
//   out[j + v] += weight[t] · in[j + v + t]      dw[t] += dy[j + v] · x[j + v + t]      v, t < 4
//
// The input gradient is such a convolution of dy, with the kernel turned and zeros between pixels.
#include "ebb/ops/convolution/planes.h"

#include "ebb/ops/convolution/geometry.cuh"
#include "ebb/ops/divider.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;

constexpr std::string_view op = "conv2d";

using Divider32 = WordDivider<std::uint32_t>;

// One spatial axis: point j sees at tap t the place j·step + t·dilation + first, and place p is
// pixel p / apart, where that divides it.
struct Window {
  int in, out, taps;
  int step, dilation, first, apart;
};

// How rows of planes lie in shared memory: the places of a row in `step` phases, so that those that
// adjacent points see at one tap are adjacent.
struct Field {
  int height, width;          // of a plane
  int h_apart, w_apart;       // places between pixels
  int rows, cols, step;       // places of a tile
  int phase, pitch;           // numbers of a phase and of a row
  int some_rows, some_packs;  // at most, of pixels in a tile
  Divider32 by_step, by_rows, by_packs;
  __host__ __device__ std::int64_t size() const { return std::int64_t{rows} * pitch; }
};

struct Planes {
  Window h, w;
  int groups, m, c;
  bool turned;
  std::int64_t m_stride, c_stride;  // of the weights
  std::int64_t images;
  int rows, packs, deep;    // of a tile: of points, four a pack; and planes of points
  int bands, strips;        // tiles down and across a plane
  int classes, class_taps;  // taps t, t + classes, … share a phase; so many places for them
  Field in, out;            // `out` is dy's, for the weight gradient
  Divider32 by_packs, by_rows, by_strips, by_bands, by_m;
  __host__ __device__ std::int64_t channels() const { return std::int64_t{groups} * m; }
  __host__ __device__ std::int64_t places() const { return deep * c * in.size(); }
  __host__ __device__ int taps() const { return c * h.taps * classes * class_taps; }
  // Of class z.
  __device__ int taps_of(int z) const {
    const int most = divide_up(w.taps, classes);
    return most - (z >= w.taps - (most - 1) * classes);
  }
  // Whether the taps of a class see adjacent places.
  __host__ __device__ bool adjacent() const { return w.dilation == 1 || w.dilation == w.step; }
};

// Fills a tile that begins at place (row, col) with `planes` planes, from + at[q] each, if that is
// not negative; `width` pixels are read at once. Plain places are pixels, in one phase.
template <int width, bool plain, class T>
__device__ void stage_planes(const Field& f, int row, int col, int planes, const std::int64_t* at,
                             const T* from, Compute<T>* tile) {
  constexpr int each = 4;
  const auto first_of = [](int place, int apart) {
    return place <= 0 ? 0 : apart == 1 ? place : divide_up(place, apart);
  };
  const int h_first = first_of(row, f.h_apart), w_first = first_of(col, f.w_apart);
  const int h_end = min(f.height, first_of(row + f.rows, f.h_apart));
  const int w_end = min(f.width, first_of(col + f.cols, f.w_apart));
  const int count = planes * f.some_rows * f.some_packs;
  for (int first = threadIdx.x; first < count; first += each * static_cast<int>(blockDim.x)) {
    Pack<T, width> held[each];
    int to[each], w[each];
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int i = first + k * static_cast<int>(blockDim.x);
      const int line = f.by_packs.quotient(i), q = f.by_rows.quotient(line);
      const int h = h_first + line - q * f.some_rows;
      w[k] = w_first / width * width + (i - line * f.some_packs) * width;
      const std::int64_t plane = i < count && h < h_end && w[k] < w_end ? at[q] : -1;
      to[k] =
          plane < 0 ? outside : (q * f.rows + h * f.h_apart - row) * f.pitch - (plain ? col : 0);
      if (plane >= 0)
        held[k] = *reinterpret_cast<const Pack<T, width>*>(from + plane +
                                                           (std::int64_t{h} * f.width + w[k]));
    }
#pragma unroll
    for (int k = 0; k < each; ++k)
#pragma unroll
      for (int e = 0; e < width; ++e) {
        const int pixel = w[k] + e;
        if (to[k] == outside || pixel < w_first || pixel >= w_end) continue;
        int place = pixel;
        if constexpr (!plain) {
          place = pixel * f.w_apart - col;
          const int index = f.by_step.quotient(place);
          place = (place - index * f.step) * f.phase + index;
        }
        tile[to[k] + place] = widen(held[k].v[e]);
      }
  }
}

template <class V>
__device__ void clear(V* tile, std::int64_t size) {
  for (int i = threadIdx.x * 4; i < size; i += blockDim.x * 4)
    *reinterpret_cast<Pack<V, 4>*>(tile + i) = {};
}

template <class V>
__device__ Pack<V, 4> four(const V* from) {
  return *reinterpret_cast<const Pack<V, 4>*>(from);
}

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

constexpr int plane_threads = 256, gradient_threads = 384;

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

// dw = Σ over slices of partial, in their order. NaN is asked for again, as zeros beside planes may
// have met infinities.
template <class T>
__global__ void __launch_bounds__(plane_threads)
    add_plane_slices(const __grid_constant__ Weights g, std::int64_t size, std::int64_t slices,
                     const Compute<T>* partial, const T* x, const T* dy, T* dw) {
  const std::int64_t i = std::int64_t{blockIdx.x} * plane_threads + threadIdx.x;
  if (i >= size) return;
  Compute<T> sum = 0;
#pragma unroll 8
  for (std::int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
  if (isnan(sum)) {
    BlockIndex digits{i};
    const int s = digits.next(g.s), r = digits.next(g.r), c = digits.next(g.c);
    sum = static_cast<Compute<T>>(add_terms<double>(g, x, dy, digits.left, c, r, s, 0, 1));
  }
  dw[i] = narrow<T>(sum);
}

// Launchers.

Field field(const Window& h, const Window& w, std::int64_t rows, std::int64_t cols, int step,
            std::int64_t phase, int width) {
  const int some_rows = std::min<int>(h.in, divide_up<std::int64_t>(rows, h.apart));
  const std::int64_t pixels = divide_up<std::int64_t>(cols, w.apart) + width - 1;
  const int some_packs = divide_up<int>(std::min<std::int64_t>(w.in, pixels), width);
  return {h.in,
          w.in,
          h.apart,
          w.apart,
          static_cast<int>(rows),
          static_cast<int>(cols),
          step,
          static_cast<int>(phase),
          static_cast<int>(step * phase),
          some_rows,
          some_packs,
          Divider32(step),
          Divider32(some_rows),
          Divider32(some_packs)};
}

// Windows and channels, without tiles.
Planes planes_of(const Conv2dSize& size, bool transposed) {
  const Gather g = gather_of(op, size, transposed);
  const auto window = [&](const Side& s) {
    const int reach = (s.kernel - 1) * s.dilation;
    return transposed ? Window{s.in, s.out, s.kernel, 1, s.dilation, s.padding - reach, s.stride}
                      : Window{s.in, s.out, s.kernel, s.stride, s.dilation, -s.padding, 1};
  };
  Planes p{};
  p.h = window(g.h);
  p.w = window(g.w);
  p.groups = g.groups;
  p.m = g.m;
  p.c = g.c;
  p.turned = transposed;
  p.m_stride = g.m_stride;
  p.c_stride = g.c_stride;
  p.images = g.images;
  p.classes = std::min(p.w.step / std::gcd(p.w.step, p.w.dilation), p.w.taps);
  p.class_taps = static_cast<int>(round_up(divide_up(p.w.taps, p.classes), 4));
  return p;
}

// Shared memory of tiles of so many rows, packs and planes.
std::int64_t plane_bytes(const Planes& p, bool gradient, std::int64_t each) {
  const std::int64_t reach = std::int64_t{p.w.taps - 1} * p.w.dilation / p.w.step;
  const std::int64_t phase = round_up(4 * p.packs + std::max<std::int64_t>(p.class_taps, reach), 4);
  const std::int64_t rows =
      std::int64_t{p.rows - 1} * p.h.step + std::int64_t{p.h.taps - 1} * p.h.dilation + 1;
  const std::int64_t numbers =
      p.c * rows * p.w.step * phase + (gradient ? std::int64_t{4} * p.rows * p.packs : p.taps());
  return p.deep * (numbers * each + 8 * (p.c + 1));
}

// Tiles of about `points` packs of points, for `planes` planes. Whether they fit.
bool set_tiles(Planes& p, std::int64_t planes, bool gradient, std::int64_t each, int width) {
  constexpr int points = 1024, across = 128;
  constexpr std::int64_t memory = 48 * 1024;
  const int all = divide_up(p.w.out, 4);
  p.packs = divide_up(all, divide_up(all, across));
  p.rows = std::clamp(points / p.packs, 1, p.h.out);
  p.rows = divide_up(p.h.out, divide_up(p.h.out, p.rows));
  p.deep = static_cast<int>(std::clamp<std::int64_t>(points / (p.rows * p.packs), 1, planes));
  while (plane_bytes(p, gradient, each) > memory) {
    int& larger = p.deep > 1 ? p.deep : p.rows > 1 ? p.rows : p.packs;
    if (larger <= 1) return false;
    larger = divide_up(larger, 2);
  }
  p.bands = divide_up(p.h.out, p.rows);
  p.strips = divide_up(all, p.packs);
  p.by_packs = Divider32(p.packs);
  p.by_rows = Divider32(p.rows);
  p.by_strips = Divider32(p.strips);
  p.by_bands = Divider32(p.bands);
  p.by_m = Divider32(p.m);
  const std::int64_t reach = std::int64_t{p.w.taps - 1} * p.w.dilation;
  const std::int64_t rows =
      std::int64_t{p.rows - 1} * p.h.step + std::int64_t{p.h.taps - 1} * p.h.dilation + 1;
  p.in = field(p.h, p.w, rows, (std::int64_t{4} * p.packs - 1) * p.w.step + reach + 1, p.w.step,
               round_up(4 * p.packs + std::max<std::int64_t>(p.class_taps, reach / p.w.step), 4),
               width);
  const auto whole = [](const Window& w) { return Window{w.out, w.out, 1, 1, 1, 0, 1}; };
  p.out = field(whole(p.h), whole(p.w), p.rows, 4 * p.packs, 1, 4 * p.packs, width);
  return true;
}

// f(constant, constant) with how many pixels are read at once, and whether places are pixels.
template <class F>
void with_width(const Planes& p, int width, F f) {
  const auto with_plain = [&](auto pixels) {
    if (p.w.step == 1 && p.w.apart == 1) {
      f(pixels, std::true_type{});
    } else {
      f(pixels, std::false_type{});
    }
  };
  if (width == 2) {
    with_plain(std::integral_constant<int, 2>{});
  } else {
    with_plain(std::integral_constant<int, 1>{});
  }
}

}  // namespace

bool gpu::planes::convolve(const Conv2dSize& size, bool transposed, const Tensor& in,
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

bool gpu::planes::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy,
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
    launch(op, add_plane_slices<T>, grid_of(op, divide_up<std::int64_t>(dw.numel(), plane_threads)),
           plane_threads, 0, weights_of(op, size), dw.numel(), slices.count * parts,
           partial.data<Compute<T>>(), x.data<T>(), dy.data<T>(), dw.data<T>());
  });
  return true;
}

}  // namespace ebb
