// Every window of x as a row of a matrix, and y and dy with a row for each pixel, turned if the
// window is one pixel:
//
//   u[(n,p,q), (c,r,s)] = x[n, c, p·stride + r − padding, …]
//   y = u · wᵀ + b      dx[n,c,h,w] = Σ over the windows that see it of (dy · w)      dw = dyᵀ · u
#include "ebb/ops/convolution/paths.h"

#include "ebb/core/cuda.cuh"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/linalg/gemm.h"
#include "ebb/ops/shape/permute.h"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int unfold_threads = 256;
using Divider32 = WordDivider<std::uint32_t>;

// Runs of `width` elements of a row of x, that are so of a row of taps too, are moved at once.
struct Unfold {
  int h, w, p, q, r, s, h_stride, w_stride, h_padding, w_padding;
  int window;                     // c·r·s
  std::int64_t packs;             // that are written
  Divider by_first, by_h;         // packs of a row of u; or of x, and its rows
  Divider32 by_second, by_third;  // then s and r, or h and c
  Divider32 by_p, by_q;           // then the row
};

template <class T, int width>
__global__ void __launch_bounds__(unfold_threads)
    unfold_pixels(const __grid_constant__ Unfold g, const T* x, T* u) {
  using Run = Pack<T, width>;
  const std::int64_t i = std::int64_t{blockIdx.x} * unfold_threads + threadIdx.x;
  if (i >= g.packs) return;
  const auto row = static_cast<unsigned>(g.by_first.quotient(i));
  const auto column = static_cast<unsigned>(i - std::int64_t{row} * g.by_first.d);
  const unsigned line = g.by_second.quotient(column), c = g.by_third.quotient(line);
  const unsigned np = g.by_q.quotient(row), n = g.by_p.quotient(np);
  const int s = static_cast<int>(column - line * g.by_second.d) * width;
  const int r = static_cast<int>(line - c * g.r);
  const int h = static_cast<int>(np - n * g.p) * g.h_stride + r - g.h_padding;
  const int w = static_cast<int>(row - np * g.q) * g.w_stride + s - g.w_padding;
  Run run{};
  const std::int64_t channels = g.window / (g.r * g.s);
  if (h >= 0 && h < g.h && w >= 0 && w < g.w)
    run = *reinterpret_cast<const Run*>(x + ((n * channels + c) * g.h + h) * g.w + w);
  reinterpret_cast<Run*>(u)[i] = run;
}

// The gradient of that: what all windows have of a pixel is added, in their order.
template <class T, class U, int width>
__global__ void __launch_bounds__(unfold_threads)
    fold_pixels(const __grid_constant__ Unfold g, const U* u, T* x) {
  const std::int64_t i = std::int64_t{blockIdx.x} * unfold_threads + threadIdx.x;
  if (i >= g.packs) return;
  const std::int64_t line = g.by_first.quotient(i);
  const int w = static_cast<int>(i - line * g.by_first.d) * width + g.w_padding;
  const auto nc = static_cast<unsigned>(g.by_h.quotient(line));
  const int h = static_cast<int>(line - std::int64_t{nc} * g.h) + g.h_padding;
  const unsigned n = g.by_third.quotient(nc), c = nc - n * g.by_third.d;
  Compute<T> sums[width] = {};
  const int h_first = h / g.h_stride, w_first = w / g.w_stride;
  for (int p = h_first, r = h - h_first * g.h_stride; r < g.r && p >= 0; --p, r += g.h_stride) {
    if (p >= g.p) continue;
    for (int q = w_first, s = w - w_first * g.w_stride; s < g.s && q >= 0; --q, s += g.w_stride) {
      if (q >= g.q) continue;
      const std::int64_t row = (std::int64_t{n} * g.p + p) * g.q + q;
      const auto run =
          *reinterpret_cast<const Pack<U, width>*>(u + row * g.window + (c * g.r + r) * g.s + s);
#pragma unroll
      for (int e = 0; e < width; ++e) sums[e] += widen(run.v[e]);
    }
  }
  Pack<T, width> run;
#pragma unroll
  for (int e = 0; e < width; ++e) run.v[e] = narrow<T>(sums[e]);
  reinterpret_cast<Pack<T, width>*>(x)[i] = run;
}

// Launchers.

// Windows of one pixel each, which need not overlap to be worth it: but only where pixels cannot be
// read where they lie.
bool one_pixel(const Conv2dSize& z) {
  const Conv2dOptions& o = z.options;
  return z.r * z.s * o.stride.h * o.stride.w == 1 && o.padding.h + o.padding.w == 0;
}

// Not in f64, and strides not a pixel at a time, which takes longer than it gains.
bool worth(const Conv2dSize& z, Dtype dtype) {
  const Conv2dOptions& o = z.options;
  const double pixels = static_cast<double>(z.n) * static_cast<double>(z.p * z.q);
  const std::int64_t window = z.c * z.r * z.s;
  const std::int64_t largest =
      std::max({z.h, z.w, z.p, z.q, o.stride.h, o.stride.w, o.padding.h, o.padding.w});
  const std::int64_t runs = z.w | z.s | o.stride.w | o.padding.w;
  const bool apart = runs % 2 == 0 && o.dilation.h == 1 && o.dilation.w == 1 &&
                     o.stride.h * o.stride.w > 1 && 2 * z.r * z.s <= 5 * o.stride.h * o.stride.w;
  const bool lone = one_pixel(z) && z.h * z.w * size_of(dtype) % 16 != 0;
  return dtype != Dtype::f64 && (apart || lone) && o.groups == 1 && window % 8 == 0 &&
         z.k % 8 == 0 && pixels < 0x1p31 && z.n * z.c < (1 << 30) && window < (1 << 30) &&
         largest < (1 << 29);
}

Unfold unfold_of(const Conv2dSize& z) {
  const auto narrowed = [](std::int64_t n) { return static_cast<int>(n); };
  const Conv2dOptions& o = z.options;
  Unfold g{};
  g.h = narrowed(z.h);
  g.w = narrowed(z.w);
  g.p = narrowed(z.p);
  g.q = narrowed(z.q);
  g.r = narrowed(z.r);
  g.s = narrowed(z.s);
  g.h_stride = narrowed(o.stride.h);
  g.w_stride = narrowed(o.stride.w);
  g.h_padding = narrowed(o.padding.h);
  g.w_padding = narrowed(o.padding.w);
  g.window = narrowed(z.c * z.r * z.s);
  return g;
}

// f(constant) with the elements of a run.
template <class T, class F>
void with_run(const Unfold& g, F f) {
  const int extents = g.w | g.s | g.w_stride | g.w_padding;
  if (extents % pack_size<T> == 0) return f(std::integral_constant<int, pack_size<T>>{});
  if (extents % 4 == 0) return f(std::integral_constant<int, 4>{});
  if (extents % 2 == 0) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 1>{});
}

dim3 blocks_for(std::int64_t packs) {
  const std::int64_t blocks = divide_up<std::int64_t>(packs, unfold_threads);
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  require(blocks <= most, Kind::limit, op, "too many blocks", blocks, most);
  return dim3(static_cast<unsigned>(blocks));
}

// x [images, rows, columns] → y [images, columns, rows].
void turn(const Tensor& x, std::int64_t images, std::int64_t rows, std::int64_t columns,
          Tensor& y) {
  ebb::Gather g;
  const auto add = [&](std::int64_t extent, std::int64_t step) {
    if (extent == 1) return;
    g.extents[static_cast<size_t>(g.rank)] = extent;
    g.steps[static_cast<size_t>(g.rank++)] = step;
  };
  add(images, rows * columns);
  add(columns, 1);
  add(rows, columns);
  permute(op, g, x, y);
}

Tensor unfold(const Conv2dSize& size, const Tensor& x) {
  Unfold g = unfold_of(size);
  Tensor u = empty({size.n * size.p * size.q, g.window}, x.options());
  if (one_pixel(size)) return turn(x, size.n, size.c, size.h * size.w, u), u;
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    with_run<T>(g, [&](auto run) {
      constexpr int width = decltype(run)::value;
      g.packs = u.numel() / width;
      g.by_first = Divider(g.window / width);
      g.by_second = Divider32(g.s / width);
      g.by_third = Divider32(g.r);
      g.by_q = Divider32(g.q);
      g.by_p = Divider32(g.p);
      launch(op, unfold_pixels<T, width>, blocks_for(g.packs), unfold_threads, 0, g, x.data<T>(),
             u.data<T>());
    });
  });
  return u;
}

void fold(const Conv2dSize& size, const Tensor& u, Tensor& x) {
  if (one_pixel(size)) return turn(u, size.n, size.h * size.w, size.c, x);
  Unfold g = unfold_of(size);
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    with_run<T>(g, [&](auto run) {
      constexpr int width = decltype(run)::value;
      g.packs = x.numel() / width;
      g.by_first = Divider(g.w / width);
      g.by_h = Divider(g.h);
      g.by_third = Divider32(size.c);
      const auto add = [&](auto element) {
        using U = decltype(element);
        launch(op, fold_pixels<T, U, width>, blocks_for(g.packs), unfold_threads, 0, g, u.data<U>(),
               x.data<T>());
      };
      if (u.dtype() == x.dtype()) {
        add(T{});
      } else {
        add(Compute<T>{});
      }
    });
  });
}

// dy with a row for each pixel.
Tensor rows_of(const Conv2dSize& z, const Tensor& dy) {
  Tensor rows = empty({z.n * z.p * z.q, z.k}, dy.options());
  turn(dy, z.n, z.k, z.p * z.q, rows);
  return rows;
}

void input_gradient(const Conv2dSize& z, const Tensor& w, const Tensor& dy, Tensor& dx) {
  const Tensor rows = rows_of(z, dy);
  // Sums of windows are rounded to bf16 once.
  const bool apart = z.r <= z.options.stride.h && z.s <= z.options.stride.w;
  const Dtype dtype = dx.dtype() == Dtype::bf16 && !apart ? Dtype::f32 : dx.dtype();
  Tensor u = empty({rows.size(0), w.numel() / z.k}, {dtype, dx.device()});
  gemm(op, {1, u.size(0), u.size(1), z.k}, rows, w, {}, {}, u);
  fold(z, u, dx);
}

}  // namespace

bool unfolded::convolve(const Conv2dSize& z, bool transposed, const Tensor& in, const Tensor& w,
                        const Tensor& b, Tensor& out) {
  // Products for each row, to be worth turning: not asked of the gradient of a stride.
  const std::int64_t enough = one_pixel(z) && out.dtype() == Dtype::bf16 ? 500'000 : 100'000;
  const bool few = w.numel() < enough && (!transposed || one_pixel(z));
  if (!worth(z, out.dtype()) || few) return false;
  if (transposed) {
    input_gradient(z, w, in, out);
    return true;
  }
  Tensor rows = empty({z.n * z.p * z.q, z.k}, out.options());
  gemm(op, {1, rows.size(0), z.k, w.numel() / z.k, false, true}, unfold(z, in), w, b, {}, rows);
  turn(rows, z.n, z.p * z.q, z.k, out);
  return true;
}

bool unfolded::weight_gradient(const Conv2dSize& z, const Tensor& x, const Tensor& dy, Tensor& dw) {
  if (!worth(z, dw.dtype())) return false;
  const Tensor rows = rows_of(z, dy);
  gemm(op, {1, z.k, dw.numel() / z.k, rows.size(0), true, false}, rows, unfold(z, x), {}, {}, dw);
  return true;
}

}  // namespace ebb::gpu
