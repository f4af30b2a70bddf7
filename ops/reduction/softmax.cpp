#include "ebb/ops/reduction/softmax.h"

#include "ebb/ops/reduction/lines.h"

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

template <class T>
void rows(const View& v, const T* x, T* y) {
  cpu::for_rows(v, [&](std::int64_t at, std::int64_t count) {
    const cpu::RowExponentials<T> e(x + at, v.n, count, y + at);
    for (std::int64_t r = 0; r < count; ++r) {
      T* row = y + at + r * v.n;
      cpu::map_row(
          row, v.n, [scale = cpu::Simd<T>(T(1 / e.sum[r]))](auto e) { return e * scale; }, row);
    }
  });
}

template <class T>
void columns(const View& v, const T* x, T* y) {
  cpu::for_columns(v, [&](std::int64_t at, std::int64_t width) {
    const cpu::ColumnExponentials<T> e(x + at, v, width, y + at);
    T scale[cpu::most_columns];
    for (std::int64_t i = 0; i < width; ++i) scale[i] = T(1 / e.sum[i]);
    for (std::int64_t k = 0; k < v.n; ++k) {
      T* row = y + at + k * v.inner;
      cpu::map_row(
          row, width, [](auto e, auto scale) { return e * scale; }, row, &scale[0]);
    }
  });
}

template <class T>
void backward_rows(const View& v, const T* y, const T* dy, T* dx) {
  cpu::for_rows(v, [&](std::int64_t at, std::int64_t count) {
    for (std::int64_t o = at; o < at + count * v.n; o += v.n) {
      const T *p = y + o, *g = dy + o;
      // Long rows that begin anywhere lie across lines of the cache less often by small registers.
      const cpu::Simd<T> dot =
          T(v.n < 512 ? cpu::sum_row<T>(
                            v.n, [](auto p, auto g) { return p * g; }, p, g)
                      : cpu::sum_of(0, v.n, [=](auto i) { return p[i] * g[i]; }));
      cpu::map_row(
          dx + o, v.n, [dot](auto p, auto g) { return p * (g - dot); }, p, g);
    }
  });
}

template <class T>
void backward_columns(const View& v, const T* y, const T* dy, T* dx) {
  cpu::for_columns(v, [&](std::int64_t at, std::int64_t width) {
    const T *p = y + at, *g = dy + at;
    const std::int64_t step = v.inner;
    double sum[cpu::most_columns] = {};
    cpu::add_rows(0, v.n, width, sum,
                  [=](auto k, auto c) { return p[k * step + c] * g[k * step + c]; });
    T dot[cpu::most_columns];
    std::copy_n(sum, width, dot);
    for (std::int64_t k = 0; k < v.n; ++k)
      cpu::map_row(
          dx + at + k * step, width, [](auto p, auto g, auto dot) { return p * (g - dot); },
          p + k * step, g + k * step, &dot[0]);
  });
}

}  // namespace

void cpu::softmax(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double>(x.dtype(), "softmax", [&](auto zero) {
    using T = decltype(zero);
    along_lines(v, rows<T>, columns<T>, y.data<T>(), x.data<T>());
  });
}

void cpu::softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double>(y.dtype(), "softmax", [&](auto zero) {
    using T = decltype(zero);
    along_lines(v, backward_rows<T>, backward_columns<T>, dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
