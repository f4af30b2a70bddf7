#include "ebb/ops/normalization/l2_normalize.h"

#include "ebb/ops/map.h"
#include "ebb/ops/short_rows.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor l2_normalize(const Tensor& x, L2NormalizeOptions options) {
  require_floating("l2_normalize", "x", x);
  View view = view_along("l2_normalize", x.shape(), options.dim);
  require(options.eps > 0 && std::isfinite(options.eps), Kind::value, "l2_normalize",
          "eps out of range", options.eps, "more than 0");
  if (view.n == 1) view = {1, 1, x.numel()};  // wherever the dimension is
  Tensor y = empty_like(x);
  Tensor scale = empty({view.outer, view.inner},
                       {x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, x.device()});
  run_as_is<cpu::l2_normalize, gpu::l2_normalize>(x.device(), x, view, options.eps, y, scale);
  return record("l2_normalize", y, {x}, [y = Saved(y), scale, view](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::l2_normalize_backward, gpu::l2_normalize_backward>(dy.device(), y.get(), dy,
                                                                      view, scale, dx);
    return {dx};
  });
}

namespace {

using cpu::Simd;
using cpu::wide;
using cpu::Wide;

constexpr std::int64_t tile = 256;  // neighbouring columns worked on together

// f(first element, columns, first column) for each tile of [n, inner] of each outer index.
template <class F>
void for_tiles(const View& v, const F& f) {
  const std::int64_t tiles = (v.inner + tile - 1) / tile;
  parallel_for(v.outer * tiles, 16384 / (v.n * std::min(tile, v.inner) + 8),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t part = begin; part < end; ++part) {
                   const std::int64_t o = part / tiles;
                   const std::int64_t first = part % tiles * tile;
                   f(o * v.n * v.inner + first, std::min(tile, v.inner - first),
                     o * v.inner + first);
                 }
               });
}

// Of a norm's square. NaN stays NaN.
template <class D>
D signed_scale(D square, D eps) {
  using cpu::select, std::sqrt;
  const D norm = sqrt(square);
  return select(norm <= eps, D(-1.0) / eps, D(1.0) / norm);
}

template <class T>
void signed_scales(double* squares, std::int64_t n, double eps, T* scale) {
  cpu::map_row(
      squares, n, [eps = Simd<double>(eps)](auto square) { return signed_scale(square, eps); },
      squares);
  cpu::array(scale, n) = cpu::array(squares, n).template cast<T>();
}

template <class T>
void rows(const View& v, const T* x, double eps, T* y, Wide<T>* scale) {
  parallel_for(v.outer, 16384 / (v.n + 8), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T* row = x + o * v.n;
      const auto square = [](Simd<double> x) { return x * x; };
      scale[o] = Wide<T>(signed_scale(cpu::sum_row<T>(v.n, square, row), eps));
      cpu::map_row(
          y + o * v.n, v.n,
          [factor = Simd<Wide<T>>(std::abs(scale[o]))](auto x) { return x * factor; }, row);
    }
  });
}

// Of single numbers the norm is |x|.
template <class T>
void numbers(std::int64_t n, const T* x, double eps, T* y, Wide<T>* scale) {
  const Simd<Wide<T>> least = Wide<T>(eps), of_least = Wide<T>(-1 / eps);
  parallel_for(n, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t near = 2048;  // numbers that stay in the first-level cache
    for (std::int64_t i = begin; i < end; i += near) {
      const std::int64_t count = std::min(near, end - i);
      cpu::map_row(
          scale + i, count,
          [=](auto x) { return select(abs(x) <= least, of_least, decltype(x)(1) / abs(x)); },
          x + i);
      cpu::map_row(
          y + i, count, [](auto x, auto scale) { return x * abs(scale); }, x + i, scale + i);
    }
  });
}

template <class T>
void columns(const View& v, const T* x, double eps, T* y, Wide<T>* scale) {
  for_tiles(v, [&](std::int64_t at, std::int64_t width, std::int64_t column) {
    double square[tile] = {};
    cpu::add_rows(0, v.n, width, square, [from = x + at, step = v.inner](auto k, auto c) {
      const double e = static_cast<double>(wide(from[k * step + c]));
      return e * e;
    });
    Wide<T> factor[tile];
    signed_scales(square, width, eps, scale + column);
    for (std::int64_t i = 0; i < width; ++i) factor[i] = std::abs(scale[column + i]);
    for (std::int64_t k = at; k < at + v.n * v.inner; k += v.inner)
      cpu::map_row(
          y + k, width, [](auto x, auto factor) { return x * factor; }, x + k, &factor[0]);
  });
}

template <class T>
void backward_rows(const View& v, const T* y, const T* dy, const Wide<T>* scale, T* dx) {
  parallel_for(v.outer, 16384 / (v.n + 8), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T *p = y + o * v.n, *g = dy + o * v.n;
      const double sum = cpu::sum_row<T>(
          v.n, [](auto p, auto g) { return p * g; }, p, g);
      using W = Wide<T>;
      const Simd<W> dot = scale[o] < 0 ? W(0) : W(sum), factor = std::abs(scale[o]);
      cpu::map_row(
          dx + o * v.n, v.n, [dot, factor](auto g, auto p) { return (g - p * dot) * factor; }, g,
          p);
    }
  });
}

template <class T>
void backward_columns(const View& v, const T* y, const T* dy, const Wide<T>* scale, T* dx) {
  for_tiles(v, [&](std::int64_t at, std::int64_t width, std::int64_t column) {
    double sum[tile] = {};
    cpu::add_rows(0, v.n, width, sum, [p = y + at, g = dy + at, step = v.inner](auto k, auto c) {
      return wide(p[k * step + c]) * wide(g[k * step + c]);
    });
    Wide<T> dot[tile], factor[tile];
    for (std::int64_t i = 0; i < width; ++i) {
      const Wide<T> own = scale[column + i];
      dot[i] = own < 0 ? Wide<T>(0) : Wide<T>(sum[i]);
      factor[i] = std::abs(own);
    }
    for (std::int64_t k = at; k < at + v.n * v.inner; k += v.inner)
      cpu::map_row(
          dx + k, width,
          [](auto g, auto p, auto dot, auto factor) { return (g - p * dot) * factor; }, dy + k,
          y + k, &dot[0], &factor[0]);
  });
}

// Short rows as columns, whose scales are worked on near, too: like a second input.
template <class T>
bool are_short(const View& v) {
  return v.inner == 1 && cpu::are_short_rows<T>(v, 2);
}

template <class T>
void forward(const View& v, const T* x, double eps, T* y, Wide<T>* scale) {
  if (v.n == 1) return numbers(v.kept(), x, eps, y, scale);
  if (!are_short<T>(v)) return (v.inner == 1 ? rows<T> : columns<T>)(v, x, eps, y, scale);
  const auto f = [=](auto first, auto count, const View& c, const auto* x, auto* y) {
    Wide<T> near[cpu::near_elements<T>];
    columns(c, x, eps, y, near);
    std::copy_n(near, count, scale + first);
  };
  cpu::for_short_rows(v, f, y, v.n, x);
}

template <class T>
void backward(const View& v, const T* y, const T* dy, const Wide<T>* scale, T* dx) {
  if (!are_short<T>(v))
    return (v.inner == 1 ? backward_rows<T> : backward_columns<T>)(v, y, dy, scale, dx);
  const auto f = [=](auto first, auto count, const View& c, const auto* y, const auto* dy,
                     auto* dx) {
    Wide<T> near[cpu::near_elements<T>];
    std::copy_n(scale + first, count, near);
    std::fill(near + count, near + c.inner, Wide<T>(1));
    backward_columns(c, y, dy, near, dx);
  };
  cpu::for_short_rows(v, f, dx, v.n, y, dy);
}

}  // namespace

void cpu::l2_normalize(const Tensor& x, const View& v, double eps, Tensor& y, Tensor& scale) {
  visit<float, double, bf16>(x.dtype(), "l2_normalize", [&](auto zero) {
    using T = decltype(zero);
    forward(v, x.data<T>(), eps, y.data<T>(), scale.data<Wide<T>>());
  });
}

void cpu::l2_normalize_backward(const Tensor& y, const Tensor& dy, const View& v,
                                const Tensor& scale, Tensor& dx) {
  visit<float, double, bf16>(y.dtype(), "l2_normalize", [&](auto zero) {
    using T = decltype(zero);
    backward(v, y.data<T>(), dy.data<T>(), scale.data<Wide<T>>(), dx.data<T>());
  });
}

}  // namespace ebb
