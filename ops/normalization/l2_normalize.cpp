#include "ebb/ops/normalization/l2_normalize.h"

#include "ebb/core/eigen.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor l2_normalize(const Tensor& x, L2NormalizeOptions options) {
  require_floating("l2_normalize", "x", x);
  const View view = view_along("l2_normalize", x.shape(), options.dim);
  require(options.eps > 0 && std::isfinite(options.eps), Kind::value, "l2_normalize",
          "eps out of range", options.eps, "more than 0");
  Tensor y = empty_like(x);
  Tensor scale = empty({view.outer, view.inner},
                       {x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, x.device()});
  run<cpu::l2_normalize, gpu::l2_normalize>(x.device(), x, view, options.eps, y, scale);
  return record("l2_normalize", y, {x}, [y = Saved(y), scale, view](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::l2_normalize_backward, gpu::l2_normalize_backward>(dy.device(), y.get(), dy, view,
                                                                scale, dx);
    return {dx};
  });
}

namespace {

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

template <class T>
T signed_scale(double square, double eps) {
  const double norm = std::sqrt(square);
  return norm <= eps ? T(-1 / eps) : T(1 / norm);  // NaN stays NaN
}

template <class T>
void forward(const T* x, const View& v, double eps, T* y, T* scale) {
  using cpu::array;
  if (v.inner == 1) {
    parallel_for(v.outer, 16384 / (v.n + 8), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin; o < end; ++o) {
        const T* row = x + o * v.n;
        const double square = cpu::sum_of(0, v.n, [row](std::int64_t i) {
          return static_cast<double>(row[i]) * static_cast<double>(row[i]);
        });
        scale[o] = signed_scale<T>(square, eps);
        array(y + o * v.n, v.n) = array(row, v.n) * std::abs(scale[o]);
      }
    });
    return;
  }
  for_tiles(v, [&](std::int64_t at, std::int64_t width, std::int64_t column) {
    cpu::Array<double> square = cpu::Array<double>::Zero(width);
    for (std::int64_t k = 0; k < v.n; ++k)
      square += array(x + at + k * v.inner, width).template cast<double>().square();
    for (std::int64_t i = 0; i < width; ++i) scale[column + i] = signed_scale<T>(square[i], eps);
    const cpu::Array<T> factor = array(scale + column, width).abs();
    for (std::int64_t k = 0; k < v.n; ++k)
      array(y + at + k * v.inner, width) = array(x + at + k * v.inner, width) * factor;
  });
}

template <class T>
void backward(const T* y, const T* dy, const View& v, const T* scale, T* dx) {
  using cpu::array;
  if (v.inner == 1) {
    parallel_for(v.outer, 16384 / (v.n + 8), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin; o < end; ++o) {
        const T* p = y + o * v.n;
        const T* g = dy + o * v.n;
        T dot = T(cpu::sum_of(0, v.n, [=](std::int64_t i) { return p[i] * g[i]; }));
        if (scale[o] < 0) dot = 0;
        array(dx + o * v.n, v.n) = (array(g, v.n) - array(p, v.n) * dot) * std::abs(scale[o]);
      }
    });
    return;
  }
  for_tiles(v, [&](std::int64_t at, std::int64_t width, std::int64_t column) {
    const auto p = [&](std::int64_t k) { return array(y + at + k * v.inner, width); };
    const auto g = [&](std::int64_t k) { return array(dy + at + k * v.inner, width); };
    cpu::Array<double> sum = cpu::Array<double>::Zero(width);
    for (std::int64_t k = 0; k < v.n; ++k) sum += (p(k) * g(k)).template cast<double>();
    const auto own = array(scale + column, width);
    const cpu::Array<T> dot = (own < T(0)).select(T(0), sum.template cast<T>());
    const cpu::Array<T> factor = own.abs();
    for (std::int64_t k = 0; k < v.n; ++k)
      array(dx + at + k * v.inner, width) = (g(k) - p(k) * dot) * factor;
  });
}

}  // namespace

void cpu::l2_normalize(const Tensor& x, const View& v, double eps, Tensor& y, Tensor& scale) {
  visit<float, double>(x.dtype(), "l2_normalize", [&](auto zero) {
    using T = decltype(zero);
    forward(x.data<T>(), v, eps, y.data<T>(), scale.data<T>());
  });
}

void cpu::l2_normalize_backward(const Tensor& y, const Tensor& dy, const View& v,
                                const Tensor& scale, Tensor& dx) {
  visit<float, double>(y.dtype(), "l2_normalize", [&](auto zero) {
    using T = decltype(zero);
    backward(y.data<T>(), dy.data<T>(), v, scale.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
