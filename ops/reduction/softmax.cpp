#include "ebb/ops/reduction/softmax.h"

#include "ebb/ops/map.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor softmax(const Tensor& x, SoftmaxOptions options) {
  require_floating("softmax", "x", x);
  const View view = view_along("softmax", x.shape(), options.dim);
  Tensor y = empty_like(x);
  run<cpu::softmax, gpu::softmax>(x.device(), x, view, y);
  return record("softmax", y, {x}, [y = Saved(y), view](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::softmax_backward, gpu::softmax_backward>(dy.device(), y.get(), dy, view, dx);
    return {dx};
  });
}

namespace {

constexpr std::int64_t tile = 256;  // neighbouring columns worked on together

std::int64_t grain(std::int64_t n) { return 16384 / (n + 8); }

template <class T>
void rows(const T* x, const View& v, T* y) {
  parallel_for(v.outer, grain(v.n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end && v.n > 0; ++o) {
      const auto in = cpu::array(x + o * v.n, v.n);
      auto out = cpu::array(y + o * v.n, v.n);
      const T m = in.maxCoeff();  // should it miss a NaN, the sum does not
      out = cpu::exp(in - m);
      const T* e = out.data();
      out *= T(1 / cpu::sum_of(0, v.n, [e](std::int64_t i) { return e[i]; }));
    }
  });
}

// [n, inner] along n, `tile` columns at a time.
template <class T>
void columns(const T* x, const View& v, T* y) {
  const std::int64_t tiles = (v.inner + tile - 1) / tile;
  parallel_for(
      v.outer * tiles, grain(v.n * std::min(tile, v.inner)),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end && v.n > 0; ++part) {
          const std::int64_t first = part % tiles * tile;
          const std::int64_t width = std::min(tile, v.inner - first);
          const std::int64_t at = part / tiles * v.n * v.inner + first;
          const auto in = [&](std::int64_t k) { return cpu::array(x + at + k * v.inner, width); };
          const auto out = [&](std::int64_t k) { return cpu::array(y + at + k * v.inner, width); };
          cpu::Array<T> m = in(0);
          for (std::int64_t k = 1; k < v.n; ++k) m = m.max(in(k));
          cpu::Array<double> sum = cpu::Array<double>::Zero(width);
          for (std::int64_t k = 0; k < v.n; ++k) {
            out(k) = cpu::exp(in(k)-m);
            sum += out(k).template cast<double>();
          }
          const cpu::Array<T> scale = sum.inverse().template cast<T>();
          for (std::int64_t k = 0; k < v.n; ++k) out(k) *= scale;
        }
      });
}

template <class T>
void backward_rows(const T* y, const T* dy, const View& v, T* dx) {
  parallel_for(v.outer, grain(v.n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T* p = y + o * v.n;
      const T* g = dy + o * v.n;
      const T dot = T(cpu::sum_of(0, v.n, [=](std::int64_t i) { return p[i] * g[i]; }));
      cpu::array(dx + o * v.n, v.n) = cpu::array(p, v.n) * (cpu::array(g, v.n) - dot);
    }
  });
}

template <class T>
void backward_columns(const T* y, const T* dy, const View& v, T* dx) {
  const std::int64_t tiles = (v.inner + tile - 1) / tile;
  parallel_for(
      v.outer * tiles, grain(v.n * std::min(tile, v.inner)),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end; ++part) {
          const std::int64_t first = part % tiles * tile;
          const std::int64_t width = std::min(tile, v.inner - first);
          const std::int64_t at = part / tiles * v.n * v.inner + first;
          const auto p = [&](std::int64_t k) { return cpu::array(y + at + k * v.inner, width); };
          const auto g = [&](std::int64_t k) { return cpu::array(dy + at + k * v.inner, width); };
          cpu::Array<double> sum = cpu::Array<double>::Zero(width);
          for (std::int64_t k = 0; k < v.n; ++k) sum += (p(k) * g(k)).template cast<double>();
          const cpu::Array<T> dot = sum.template cast<T>();
          for (std::int64_t k = 0; k < v.n; ++k)
            cpu::array(dx + at + k * v.inner, width) = p(k) * (g(k) - dot);
        }
      });
}

}  // namespace

void cpu::softmax(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double>(x.dtype(), "softmax", [&](auto zero) {
    using T = decltype(zero);
    (v.inner == 1 ? rows<T> : columns<T>)(x.data<T>(), v, y.data<T>());
  });
}

void cpu::softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double>(y.dtype(), "softmax", [&](auto zero) {
    using T = decltype(zero);
    (v.inner == 1 ? backward_rows<T> : backward_columns<T>)(y.data<T>(), dy.data<T>(), v,
                                                            dx.data<T>());
  });
}

}  // namespace ebb
