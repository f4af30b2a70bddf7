// A thread goes down a strip of adjacent columns. It reads each row of pixels that they see once,
// straight into registers, and adds it to all rows of the strip:
//
//   out[h, w] = Σ over r, s  weight[r, s] · place[h·step + r − R/2, w·step + s − S/2]
//
// Places are pixels; backward with stride 2, pixels of dy with zeros between them, of which none is
// multiplied. What dx sees of dy is what dw is made of, so both are one kernel, by which dy and x
// are read once and dx is written:
//
//   dx[h, w] = Σ over r, s  turned weight[r, s] · place[…]
//   turned dw[r, s] = Σ over h, w  x[h, w] · place[…]
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/second_stage.cuh"

#include "ebb/ops/divider.cuh"
#include "ebb/ops/packs.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int strip_threads = 256;
using Divider32 = WordDivider<std::uint32_t>;

// The smallest power of two that is not less, but 0 for none.
constexpr int packed(int n) {
  return n <= 0 ? 0 : static_cast<int>(std::bit_ceil(static_cast<unsigned>(n)));
}

// A strip of `cols` columns of points, `step` places between them and `apart` places between
// pixels. All rows are whole packs of `pack` pixels.
template <int r_, int s_, int step_, int apart_, int cols_, int pack_>
struct Strip {
  static constexpr int r = r_, s = s_, step = step_, apart = apart_, cols = cols_, pack = pack_;
  static constexpr int rows = r == 1 ? 1 : 4;
  static constexpr int above = r / 2, before = s / 2;  // places before the first point
  static constexpr int places_down = (rows - 1) * step + r;
  // Pixels of a row: the strip's own, and packs of those that its border sees beside them.
  static constexpr int own = cols * step / apart;
  static constexpr int left = packed(before / apart);
  static constexpr int beyond = ((cols - 1) * step + s - 1 - before) / apart + 1 - own;
  static constexpr int right = packed(beyond);
};

// Blocks of a multiprocessor, backward.
template <class K>
inline constexpr int resident = K::r > 3 ? 1 : 2;

struct Strips {
  int h_in, w_in, h_out, w_out;
  int across, down;  // strips of a plane
  int channels;
  std::int64_t count;  // of all strips, or of one channel's
  Divider32 by_across, by_down, by_channels;
};

// Of a row that is `real`, and zeros beside it.
template <int count, int most, class T>
__device__ void read_pixels(const T* row, bool real, int first, int width, float* pixels) {
  constexpr int pack = count == 0 ? 1 : std::min(count, most);
#pragma unroll
  for (int at = 0; at < count; at += pack) {
    const bool there = real && static_cast<unsigned>(first + at) < static_cast<unsigned>(width);
    const auto some = load_if<pack>(there, row + first + at);
#pragma unroll
    for (int e = 0; e < pack; ++e) pixels[at + e] = widen(some, e);
  }
}

// add(p, r, v, s, pixel) of all that the strip's point (p, v) sees by tap (r, s).
template <class K, class T, class F>
__device__ void for_products(const Strips& g, const T* plane, int row, int col, F add) {
#pragma unroll
  for (int i = 0; i < K::places_down; ++i) {
    if ((i - K::above) % K::apart != 0) continue;
    float pixels[K::left + K::own + K::right];
    const int h = row * K::step / K::apart + (i - K::above) / K::apart;
    const int w = col * K::step / K::apart;
    const bool real = static_cast<unsigned>(h) < static_cast<unsigned>(g.h_in);
    const T* from = plane + std::int64_t{h} * g.w_in;
    read_pixels<K::left, K::pack>(from, real, w - K::left, g.w_in, pixels);
    read_pixels<K::own, K::pack>(from, real, w, g.w_in, pixels + K::left);
    read_pixels<K::right, K::pack>(from, real, w + K::own, g.w_in, pixels + K::left + K::own);
#pragma unroll
    for (int p = 0; p < K::rows; ++p) {
      const int r = i - p * K::step;
      if (r < 0 || r >= K::r) continue;
#pragma unroll
      for (int s = 0; s < K::s; ++s)
#pragma unroll
        for (int v = 0; v < K::cols; ++v) {
          const int place = v * K::step + s - K::before;
          if (place % K::apart == 0) add(p, r, v, s, pixels[K::left + place / K::apart]);
        }
    }
  }
}

template <class K, class T>
__device__ void store_row(T* to, const float (&sums)[K::cols], float add, int left) {
  constexpr int pack = std::min(K::cols, K::pack);
#pragma unroll
  for (int at = 0; at < K::cols; at += pack) {
    float some[pack];
#pragma unroll
    for (int e = 0; e < pack; ++e) some[e] = sums[at + e] + add;
    if (at < left) store_words(to + at, narrow<T>(some));
  }
}

// Of the strip's channel; `turned`, the last first.
template <class K, class T>
__device__ void read_taps(const T* weight, bool turned, float (&taps)[K::r * K::s]) {
  constexpr int last = K::r * K::s - 1;
#pragma unroll
  for (int t = 0; t <= last; ++t) taps[t] = weight ? widen(weight[turned ? last - t : t]) : 0.f;
}

// Forward, or the input gradient alone, whose kernel is turned.
template <class K, class T>
__global__ void __launch_bounds__(strip_threads)
    convolve_strips(const __grid_constant__ Strips g, bool turned, const T* in, const T* weight,
                    const T* bias, T* out) {
  const std::int64_t index = std::int64_t{blockIdx.x} * strip_threads + threadIdx.x;
  if (index >= g.count) return;
  const auto strip = static_cast<unsigned>(index), line = g.by_across.quotient(strip);
  const unsigned plane = g.by_down.quotient(line);
  const unsigned channel = plane - g.by_channels.quotient(plane) * g.channels;
  const int col = static_cast<int>(strip - line * g.across) * K::cols;
  const int row = static_cast<int>(line - plane * g.down) * K::rows;
  float taps[K::r * K::s], sums[K::rows][K::cols] = {};
  read_taps<K>(weight + channel * (K::r * K::s), turned, taps);
  for_products<K>(
      g, in + std::int64_t{plane} * g.h_in * g.w_in, row, col,
      [&](int p, int r, int v, int s, float pixel) { sums[p][v] += taps[r * K::s + s] * pixel; });
  const float add = bias ? widen(bias[channel]) : 0.f;
  out += (std::int64_t{plane} * g.h_out + row) * g.w_out + col;
#pragma unroll
  for (int p = 0; p < K::rows; ++p)
    if (row + p < g.h_out)
      store_row<K>(out + std::int64_t{p} * g.w_out, sums[p], add, g.w_out - col);
}

// All gradients of one channel over one slice of its strips: dx, if it is wanted, and of dw and db
// partial [slice, channel, tap or bias].
template <class K, class T>
__global__ void __launch_bounds__(strip_threads, resident<K>)
    backward_strips(const __grid_constant__ Strips g, std::int64_t slice_strips, const T* x,
                    const T* weight, const T* dy, T* dx, float* partial) {
  constexpr int taps_count = K::r * K::s, results = taps_count + 1;
  constexpr int warps = strip_threads / warp_size;
  __shared__ float parts[warps][results];
  const unsigned slice = g.by_channels.quotient(blockIdx.x);
  const unsigned channel = blockIdx.x - slice * g.channels;
  float taps[taps_count], sums[results] = {};
  read_taps<K>(weight ? weight + channel * taps_count : nullptr, true, taps);
  const std::int64_t end = min(g.count, (slice + 1) * slice_strips);
#pragma unroll 1
  for (std::int64_t index = slice * slice_strips + threadIdx.x; index < end;
       index += strip_threads) {
    const auto strip = static_cast<unsigned>(index), line = g.by_across.quotient(strip);
    const unsigned image = g.by_down.quotient(line);
    const std::int64_t plane = std::int64_t{image} * g.channels + channel;
    const int col = static_cast<int>(strip - line * g.across) * K::cols;
    const int row = static_cast<int>(line - image * g.down) * K::rows;
    const std::int64_t first = (plane * g.h_out + row) * g.w_out;
    float points[K::rows][K::cols], results_of_dx[K::rows][K::cols] = {};
#pragma unroll
    for (int p = 0; p < K::rows; ++p)
      read_pixels<K::cols, K::pack>(x + first + std::int64_t{p} * g.w_out, row + p < g.h_out, col,
                                    g.w_out, points[p]);
    for_products<K>(g, dy + plane * g.h_in * g.w_in, row, col,
                    [&](int p, int r, int v, int s, float pixel) {
                      results_of_dx[p][v] += taps[r * K::s + s] * pixel;
                      sums[r * K::s + s] += points[p][v] * pixel;
                      if (r == K::above && s == K::before) sums[taps_count] += pixel;
                    });
    if (!dx) continue;
#pragma unroll
    for (int p = 0; p < K::rows; ++p)
      if (row + p < g.h_out)
        store_row<K>(dx + first + std::int64_t{p} * g.w_out + col, results_of_dx[p], 0.f,
                     g.w_out - col);
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
  const int turned = taps_count - 1 - static_cast<int>(threadIdx.x);
  partial[std::int64_t{blockIdx.x} * results + (turned < 0 ? taps_count : turned)] = sum;
}

// Launchers.

// f(Strip) of what these kernels do, with so many times the columns where it is a single row.
// Whether there is one.
template <class T, int row_cols, class F>
bool with_strip(const Conv2dSize& z, bool transposed, F f) {
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
  const auto with = [&](auto strip) {
    done = true;
    f(strip);
  };
  const std::int64_t stride = o.stride.w;
  const auto with_pack = [&]<int cols, int pack>() {
    const auto square = [&]<int side>() {
      if (z.r != side || z.s != side || stride > 2) return;
      if (stride == 1) return with(Strip<side, side, 1, 1, cols, pack>{});
      if (transposed) return with(Strip<side, side, 1, 2, cols, pack>{});
      with(Strip<side, side, 2, 1, cols, pack>{});
    };
    const auto row = [&]<int taps>() {
      if (z.r != 1 || z.s != taps || stride != 1) return;
      with(Strip<1, taps, 1, 1, row_cols * cols, pack>{});
    };
    square.template operator()<3>();
    square.template operator()<5>();
    square.template operator()<7>();
    row.template operator()<3>();
    row.template operator()<5>();
    row.template operator()<9>();
  };
  // Fewer columns where packs are smaller, so that threads side by side read whole lines.
  constexpr int most = pack_size<T>;
  const std::int64_t widths = z.w | z.q;
  if (widths % most == 0) {
    with_pack.template operator()<most, most>();
  } else if (widths % 4 == 0) {
    with_pack.template operator()<4, 4>();
  } else if (widths % 2 == 0) {
    with_pack.template operator()<4, 2>();
  } else {
    with_pack.template operator()<2, 1>();
  }
  return done;
}

// f(Strip, T{}), in float32 or bf16.
template <int row_cols, class F>
bool with_kernel(const Conv2dSize& z, bool transposed, Dtype dtype, F f) {
  if (dtype == Dtype::f64) return false;
  const auto with = [&](auto zero) {
    return with_strip<decltype(zero), row_cols>(z, transposed, [&](auto strip) { f(strip, zero); });
  };
  return dtype == Dtype::bf16 ? with(bf16{}) : with(0.f);
}

template <class K>
Strips strips_of(const Conv2dSize& z, bool transposed, std::int64_t planes) {
  const auto narrowed = [](std::int64_t n) { return static_cast<int>(n); };
  Strips g{};
  g.h_in = narrowed(transposed ? z.p : z.h);
  g.w_in = narrowed(transposed ? z.q : z.w);
  g.h_out = narrowed(transposed ? z.h : z.p);
  g.w_out = narrowed(transposed ? z.w : z.q);
  g.across = divide_up(g.w_out, K::cols);
  g.down = divide_up(g.h_out, K::rows);
  g.channels = narrowed(z.c);
  g.count = planes * g.across * g.down;
  g.by_across = Divider32(g.across);
  g.by_down = Divider32(g.down);
  g.by_channels = Divider32(g.channels);
  return g;
}

// How many slices of so many channels keep an H100 busy to the end: so the order of the sums is the
// same on every GPU.
inline std::int64_t busy_slices(std::int64_t channels, int resident_blocks) {
  constexpr std::int64_t most = 64, multiprocessors = 132;
  const std::int64_t resident = resident_blocks * multiprocessors;
  std::int64_t best = 1;
  const auto waves = [&](std::int64_t slices) { return divide_up(channels * slices, resident); };
  for (std::int64_t slices = 2; slices <= most; ++slices)
    if (waves(slices) * best < waves(best) * slices) best = slices;
  return best;
}

template <class K, class T>
void launch_backward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& dy,
                     Tensor& dx, Tensor& dw, Tensor& db) {
  const Strips g = strips_of<K>(z, true, z.n);
  constexpr std::int64_t most = 4096 / (K::cols * K::rows) * strip_threads;  // for short sums
  const std::int64_t wanted =
      std::max(busy_slices(g.channels, resident<K>), divide_up(g.count, most));
  const std::int64_t length = std::max<std::int64_t>(strip_threads, divide_up(g.count, wanted));
  const std::int64_t slices = divide_up(g.count, length);
  const std::int64_t results = dw.numel() + g.channels;
  Tensor partial = empty({slices, results}, {Dtype::f32, dw.device()});
  launch(op, backward_strips<K, T>, grid_of(op, slices * g.channels), strip_threads, 0, g, length,
         x.data<T>(), dx.defined() ? w.data<T>() : nullptr, dy.data<T>(),
         dx.defined() ? dx.data<T>() : nullptr, partial.data<float>());
  launch_add_channel_slices<T>(weights_of(z), true, slices, partial, x, dy, dw, db);
}

}  // namespace

bool strips::convolve(const Conv2dSize& z, bool transposed, const Tensor& in, const Tensor& weight,
                      const Tensor& bias, Tensor& out) {
  return with_kernel<1>(z, transposed, out.dtype(), [&](auto strip, auto zero) {
    using K = decltype(strip);
    using T = decltype(zero);
    const Strips g = strips_of<K>(z, transposed, z.n * z.c);
    launch(op, convolve_strips<K, T>, grid_of(op, divide_up<std::int64_t>(g.count, strip_threads)),
           strip_threads, 0, g, transposed, in.data<T>(), weight.data<T>(),
           bias.defined() ? bias.data<T>() : nullptr, out.data<T>());
  });
}

bool strips::backward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& dy,
                      Tensor& dx, Tensor& dw, Tensor& db) {
  return with_kernel<2>(z, true, dw.dtype(), [&](auto strip, auto zero) {
    using K = decltype(strip);
    if constexpr (K::step == 1) launch_backward<K, decltype(zero)>(z, x, w, dy, dx, dw, db);
  });
}

}  // namespace ebb::gpu
