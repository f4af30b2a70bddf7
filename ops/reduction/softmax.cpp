#include "ebb/ops/reduction/softmax.h"

#include "ebb/ops/reduction/lines.h"

namespace ebb {

Tensor softmax(const Tensor& x, SoftmaxOptions options) {
  require_floating("softmax", "x", x);
  const View view = view_along("softmax", x.shape(), options.dim);
  Tensor y = empty_like(x);
  run_as_is<cpu::softmax, gpu::softmax>(x.device(), x, view, y);
  return record("softmax", y, {x}, [y = Saved(y), view](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::softmax_backward, gpu::softmax_backward>(dy.device(), y.get(), dy, view, dx);
    return {dx};
  });
}

namespace {

using cpu::wide;
using cpu::Wide;

template <class T>
void rows(const View& v, const T* x, T* y) {
  cpu::for_rows(v, [&](std::int64_t at, std::int64_t count) {
    const cpu::Unrounded<T> e(y + at, count, v.n, v.n);
    const cpu::RowExponentials<T> of(x + at, v.n, count, e.data);
    for (std::int64_t r = 0; r < count; ++r)
      cpu::map_row(
          y + at + r * v.n, v.n,
          [scale = cpu::Simd<Wide<T>>(Wide<T>(1 / of.sum[r]))](auto e) { return e * scale; },
          e.data + r * v.n);
  });
}

template <class T>
void columns(const View& v, const T* x, T* y) {
  cpu::for_columns(v, [&](std::int64_t at, std::int64_t width) {
    const cpu::Unrounded<T> e(y + at, v.n, width, v.inner);
    const cpu::ColumnExponentials<T> of(x + at, v, width, e.data, e.step);
    Wide<T> scale[cpu::most_columns];
    for (std::int64_t i = 0; i < width; ++i) scale[i] = Wide<T>(1 / of.sum[i]);
    for (std::int64_t k = 0; k < v.n; ++k)
      cpu::map_row(
          y + at + k * v.inner, width, [](auto e, auto scale) { return e * scale; },
          e.data + k * e.step, &scale[0]);
  });
}

template <class T>
void backward_rows(const View& v, const T* y, const T* dy, T* dx) {
  cpu::for_rows(v, [&](std::int64_t at, std::int64_t count) {
    for (std::int64_t o = at; o < at + count * v.n; o += v.n) {
      const T *p = y + o, *g = dy + o;
      const cpu::Simd<Wide<T>> dot = Wide<T>(cpu::quick_sum_row<T>(
          v.n, [](auto p, auto g) { return p * g; }, p, g));
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
                  [=](auto k, auto c) { return wide(p[k * step + c]) * wide(g[k * step + c]); });
    Wide<T> dot[cpu::most_columns];
    std::copy_n(sum, width, dot);
    for (std::int64_t k = 0; k < v.n; ++k)
      cpu::map_row(
          dx + at + k * step, width, [](auto p, auto g, auto dot) { return p * (g - dot); },
          p + k * step, g + k * step, &dot[0]);
  });
}

}  // namespace

void cpu::softmax(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "softmax", [&](auto zero) {
    using T = decltype(zero);
    along_lines(
        v, [](auto... a) { rows(a...); }, [](auto... a) { columns(a...); }, y.data<T>(),
        x.data<T>());
  });
}

void cpu::softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double, bf16>(y.dtype(), "softmax", [&](auto zero) {
    using T = decltype(zero);
    along_lines(
        v, [](auto... a) { backward_rows(a...); }, [](auto... a) { backward_columns(a...); },
        dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
