// A thread goes down a strip of four adjacent columns. It reads each row of pixels that they see
// once, straight into registers, and adds it to all rows of the strip:
//
//   out[h, j + v] = Σ over r, s  weight[r, s] · place[h·step + r − R/2, (j + v)·step + s − S/2]
//   dw[r, s] = Σ over h, v  dy[h, j + v] · place[…]
//
// Places are pixels; for the input gradient with stride 2, pixels of dy with zeros between them.
#include "ebb/ops/convolution/strips.h"

#include "ebb/ops/convolution/geometry.cuh"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/parts.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;

constexpr std::string_view op = "conv2d";
constexpr int strip_threads = 256;
using Divider32 = WordDivider<std::uint32_t>;

// `step` places between points, `apart` between pixels; all columns are in packs of `pack`.
template <int r_, int s_, int step_, int apart_, int pack_>
struct Kernel {
  static constexpr int r = r_, s = s_, step = step_, apart = apart_, pack = pack_;
  static constexpr int rows = r == 1 ? 1 : 4;  // of points, a strip
  static constexpr int places_down = (rows - 1) * step + r, places_across = 3 * step + s;
  static constexpr int resident = r > 3 ? 2 : 4;  // blocks of a gradient
  static constexpr int before = s / 2;            // places before the first column
};

struct Strips {
  int h_in, w_in, h_out, w_out;
  int across, down;  // strips of a plane
  int channels;
  std::int64_t count;  // of all strips, or of one channel's
  Divider32 by_across, by_down, by_channels;
};

// The places of one row, from column `first` on, which is a multiple of four steps.
template <class K, class T>
__device__ void read_row(const T* plane, int height, int width, int row, int first,
                         float (&places)[K::places_across]) {
  const int h = K::apart == 1 ? row : row / K::apart;
  const bool real = row >= 0 && h < height && (K::apart == 1 || row % K::apart == 0);
  const T* from = plane + std::int64_t{h} * width;
  constexpr int low = -divide_up(K::before, 4) * 4;
#pragma unroll
  for (int at = low; at < K::places_across - K::before; at += K::pack) {
    if constexpr (K::apart == 1) {
      if (at + K::pack <= -K::before) continue;
      const bool inside = real && first + at >= 0 && first + at < width;
      Pack<T, K::pack> pack{};
      if (inside) pack = *reinterpret_cast<const Pack<T, K::pack>*>(from + first + at);
#pragma unroll
      for (int e = 0; e < K::pack; ++e)
        if (at + e >= -K::before && at + e + K::before < K::places_across)
          places[at + e + K::before] = widen(pack.v[e]);
    }
  }
  if constexpr (K::apart > 1) {
#pragma unroll
    for (int i = 0; i < K::places_across; ++i) {
      const int at = i - K::before;
      places[i] = 0;
      if (at % K::apart == 0) {
        const int w = first / K::apart + at / K::apart;
        if (real && w >= 0 && w < width) places[i] = widen(from[w]);
      }
    }
  }
}

template <class K, class T>
__device__ void store_row(T* to, const float (&sums)[4], float add, int left) {
  Pack<T, 4> four;
#pragma unroll
  for (int v = 0; v < 4; ++v) four.v[v] = narrow<T>(sums[v] + add);
  if constexpr (K::pack == 4) {
    store(reinterpret_cast<Pack<T, 4>*>(to), four);
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v)
      if (v < left) to[v] = four.v[v];
  }
}

// Forward, and the input gradient, whose kernel is turned.
template <class K, class T>
__global__ void __launch_bounds__(strip_threads)
    convolve_strips(const __grid_constant__ Strips g, bool turned, const T* in, const T* weight,
                    const T* bias, T* out) {
  const std::int64_t index = std::int64_t{blockIdx.x} * strip_threads + threadIdx.x;
  if (index >= g.count) return;
  const auto strip = static_cast<unsigned>(index), line = g.by_across.quotient(strip);
  const unsigned plane = g.by_down.quotient(line);
  const unsigned channel = plane - g.by_channels.quotient(plane) * g.channels;
  const int j = static_cast<int>(strip - line * g.across) * 4;
  const int first_row = static_cast<int>(line - plane * g.down) * K::rows;
  in += std::int64_t{plane} * g.h_in * g.w_in;
  weight += channel * (K::r * K::s);
  float taps[K::r * K::s];
#pragma unroll
  for (int t = 0; t < K::r * K::s; ++t) taps[t] = widen(weight[turned ? K::r * K::s - 1 - t : t]);

  float sums[K::rows][4] = {};
#pragma unroll
  for (int i = 0; i < K::places_down; ++i) {
    float places[K::places_across];
    read_row<K>(in, g.h_in, g.w_in, first_row * K::step + i - K::r / 2, j * K::step, places);
#pragma unroll
    for (int p = 0; p < K::rows; ++p) {
      const int r = i - p * K::step;
      if (r < 0 || r >= K::r) continue;
#pragma unroll
      for (int s = 0; s < K::s; ++s)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[p][v] += taps[r * K::s + s] * places[v * K::step + s];
    }
  }
  const float add = bias ? widen(bias[channel]) : 0.f;
  T* to = out + (std::int64_t{plane} * g.h_out + first_row) * g.w_out + j;
#pragma unroll
  for (int p = 0; p < K::rows; ++p)
    if (first_row + p < g.h_out)
      store_row<K>(to + std::int64_t{p} * g.w_out, sums[p], add, g.w_out - j);
}

// dw and db of one channel over one slice of its strips: partial [slice, channel, tap or bias].
template <class K, class T>
__global__ void __launch_bounds__(strip_threads, K::resident)
    gradient_strips(const __grid_constant__ Strips g, std::int64_t slice_strips, const T* x,
                    const T* dy, float* partial) {
  constexpr int results = K::r * K::s + 1, warps = strip_threads / warp_size;
  __shared__ float parts[warps][results];
  const unsigned slice = g.by_channels.quotient(blockIdx.x);
  const unsigned channel = blockIdx.x - slice * g.channels;
  float sums[results] = {};
  const std::int64_t end = min(g.count, (slice + 1) * slice_strips);
#pragma unroll 1
  for (std::int64_t index = slice * slice_strips + threadIdx.x; index < end;
       index += strip_threads) {
    const auto strip = static_cast<unsigned>(index), line = g.by_across.quotient(strip);
    const unsigned image = g.by_down.quotient(line);
    const std::int64_t plane = std::int64_t{image} * g.channels + channel;
    const int j = static_cast<int>(strip - line * g.across) * 4;
    const int first_row = static_cast<int>(line - image * g.down) * K::rows;
    float points[K::rows][4];
    const T* from = dy + (plane * g.h_out + first_row) * g.w_out + j;
#pragma unroll
    for (int p = 0; p < K::rows; ++p) {
      const bool real = first_row + p < g.h_out;
#pragma unroll
      for (int at = 0; at < 4; at += K::pack) {
        Pack<T, K::pack> pack{};
        if (real && j + at < g.w_out)
          pack = *reinterpret_cast<const Pack<T, K::pack>*>(from + std::int64_t{p} * g.w_out + at);
#pragma unroll
        for (int e = 0; e < K::pack; ++e) {
          points[p][at + e] = widen(pack.v[e]);
          sums[results - 1] += points[p][at + e];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < K::places_down; ++i) {
      float places[K::places_across];
      read_row<K>(x + plane * g.h_in * g.w_in, g.h_in, g.w_in, first_row * K::step + i - K::r / 2,
                  j * K::step, places);
#pragma unroll
      for (int p = 0; p < K::rows; ++p) {
        const int r = i - p * K::step;
        if (r < 0 || r >= K::r) continue;
#pragma unroll
        for (int s = 0; s < K::s; ++s)
#pragma unroll
          for (int v = 0; v < 4; ++v) sums[r * K::s + s] += points[p][v] * places[v * K::step + s];
      }
    }
  }
#pragma unroll
  for (int t = 0; t < results; ++t) {
    const float sum = warp_reduce(sums[t], Sum{});
    if (threadIdx.x % warp_size == 0) parts[threadIdx.x / warp_size][t] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= results) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) sum += parts[w][threadIdx.x];
  partial[std::int64_t{blockIdx.x} * results + threadIdx.x] = sum;
}

// dw and db = Σ over slices of partial, in their order. NaN of dw is asked for again, as zeros
// beside planes may have met infinities.
template <class T>
__global__ void __launch_bounds__(strip_threads)
    add_strips(const __grid_constant__ Weights g, std::int64_t slices, const float* partial,
               const T* x, const T* dy, T* dw, T* db) {
  await_previous();
  const int taps = g.r * g.s, results = taps + 1;
  const std::int64_t size = std::int64_t{g.groups} * results;
  const std::int64_t i = std::int64_t{blockIdx.x} * strip_threads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
#pragma unroll 8
  for (std::int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
  const std::int64_t channel = i / results;
  const int tap = static_cast<int>(i % results);
  if (tap == taps) {
    if (db) db[channel] = narrow<T>(sum);
    return;
  }
  if (isnan(sum))
    sum = static_cast<float>(add_terms<double>(g, x, dy, channel, 0, tap / g.s, tap % g.s, 0, 1));
  dw[channel * taps + tap] = narrow<T>(sum);
}

// Launchers.

// f(Kernel) of what these kernels do, with so many columns to a pack. Whether there is one.
template <class F>
bool with_kernel(const Conv2dSize& z, bool transposed, F f) {
  const Conv2dOptions& o = z.options;
  const bool depthwise = o.groups == z.c && o.groups == z.k && o.groups > 1;
  const bool even = o.stride.h == o.stride.w || z.h == 1;
  const bool half = o.padding.h == z.r / 2 && o.padding.w == z.s / 2;
  const std::int64_t strips =
      z.n * z.c * std::max(z.h, z.p) * divide_up<std::int64_t>(std::max(z.w, z.q), 4);
  if (!depthwise || !even || !half || o.dilation.h * o.dilation.w != 1 ||
      strips >= std::int64_t{1} << 31)
    return false;
  bool done = false;
  const auto with = [&](auto kernel) {
    done = true;
    f(kernel);
  };
  const auto with_pack = [&](auto size) {
    constexpr int pack = decltype(size)::value;
    const std::int64_t r = z.r, s = z.s, stride = o.stride.w;
    if (r == 3 && s == 3 && stride == 2 && !transposed) with(Kernel<3, 3, 2, 1, pack>{});
    if (r == 3 && s == 3 && stride == 2 && transposed) with(Kernel<3, 3, 1, 2, pack>{});
    if (stride != 1) return;
    if (r == 3 && s == 3) with(Kernel<3, 3, 1, 1, pack>{});
    if (r == 5 && s == 5) with(Kernel<5, 5, 1, 1, pack>{});
    if (r == 7 && s == 7) with(Kernel<7, 7, 1, 1, pack>{});
    if (r == 1 && s == 3) with(Kernel<1, 3, 1, 1, pack>{});
    if (r == 1 && s == 5) with(Kernel<1, 5, 1, 1, pack>{});
    if (r == 1 && s == 9) with(Kernel<1, 9, 1, 1, pack>{});
  };
  if (z.w % 4 == 0 && z.q % 4 == 0) {
    with_pack(std::integral_constant<int, 4>{});
  } else {
    with_pack(std::integral_constant<int, 1>{});
  }
  return done;
}

// f(T{}) with the type of an element, unless that is f64.
template <class F>
bool with_type(Dtype dtype, F f) {
  if (dtype == Dtype::f64) return false;
  return dtype == Dtype::bf16 ? f(bf16{}) : f(0.f);
}

template <class K>
Strips strips_of(const Conv2dSize& z, bool transposed, std::int64_t planes) {
  const auto narrowed = [](std::int64_t n) { return static_cast<int>(n); };
  Strips g{};
  g.h_in = narrowed(transposed ? z.p : z.h);
  g.w_in = narrowed(transposed ? z.q : z.w);
  g.h_out = narrowed(transposed ? z.h : z.p);
  g.w_out = narrowed(transposed ? z.w : z.q);
  g.across = divide_up(g.w_out, 4);
  g.down = divide_up(g.h_out, K::rows);
  g.channels = narrowed(z.c);
  g.count = planes * g.across * g.down;
  g.by_across = Divider32(g.across);
  g.by_down = Divider32(g.down);
  g.by_channels = Divider32(g.channels);
  return g;
}

// How many slices of so many channels keep the machine busy to the end.
inline std::int64_t busy_slices(std::int64_t channels, std::int64_t resident) {
  constexpr std::int64_t most = 64;
  std::int64_t best = 1;
  const auto waves = [&](std::int64_t slices) { return divide_up(channels * slices, resident); };
  for (std::int64_t slices = 2; slices <= most; ++slices)
    if (waves(slices) * best < waves(best) * slices) best = slices;
  return best;
}

template <class K, class T>
void launch_gradients(const Conv2dSize& z, const Tensor& x, const Tensor& dy, Tensor& dw,
                      Tensor& db) {
  const Strips g = strips_of<K>(z, false, z.n);
  constexpr std::int64_t most = 4096 / (4 * K::rows) * strip_threads;  // so that sums stay short
  const std::int64_t wanted =
      std::max(busy_slices(g.channels, std::int64_t{K::resident} * multiprocessors()),
               divide_up(g.count, most));
  const std::int64_t length = std::max<std::int64_t>(strip_threads, divide_up(g.count, wanted));
  const std::int64_t slices = divide_up(g.count, length);
  const std::int64_t results = dw.numel() + g.channels;
  Tensor partial = empty({slices, results}, {Dtype::f32, dw.device()});
  launch(op, gradient_strips<K, T>, grid_of(op, slices * g.channels), strip_threads, 0, g, length,
         x.data<T>(), dy.data<T>(), partial.data<float>());
  launch_next(op, add_strips<T>, grid_of(op, divide_up<std::int64_t>(results, strip_threads)),
              strip_threads, weights_of(op, z), slices, partial.data<float>(), x.data<T>(),
              dy.data<T>(), dw.data<T>(), db.defined() ? db.data<T>() : nullptr);
}

}  // namespace

bool gpu::strips::convolve(const Conv2dSize& z, bool transposed, const Tensor& in,
                           const Tensor& weight, const Tensor& bias, Tensor& out) {
  return with_type(out.dtype(), [&](auto zero) {
    return with_kernel(z, transposed, [&](auto kernel) {
      using K = decltype(kernel);
      using T = decltype(zero);
      const Strips g = strips_of<K>(z, transposed, z.n * z.c);
      launch(op, convolve_strips<K, T>,
             grid_of(op, divide_up<std::int64_t>(g.count, strip_threads)), strip_threads, 0, g,
             transposed, in.data<T>(), weight.data<T>(), bias.defined() ? bias.data<T>() : nullptr,
             out.data<T>());
    });
  });
}

bool gpu::strips::filter_gradients(const Conv2dSize& z, const Tensor& x, const Tensor& dy,
                                   Tensor& dw, Tensor& db) {
  return with_type(dw.dtype(), [&](auto zero) {
    return with_kernel(z, false, [&](auto kernel) {
      using K = decltype(kernel);
      if constexpr (K::apart == 1) launch_gradients<K, decltype(zero)>(z, x, dy, dw, db);
    });
  });
}

}  // namespace ebb
