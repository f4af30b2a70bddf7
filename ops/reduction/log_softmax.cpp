#include "ebb/ops/reduction/log_softmax.h"

#include "ebb/ops/reduction/lines.h"

namespace ebb {

Tensor log_softmax(const Tensor& x, SoftmaxOptions options) {
  require_floating("log_softmax", "x", x);
  const View view = view_along("log_softmax", x.shape(), options.dim);
  Tensor y = empty_like(x);
  run_as_is<cpu::log_softmax, gpu::log_softmax>(x.device(), x, view, y);
  return record("log_softmax", y, {x}, [y = Saved(y), view](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run_as_is<cpu::log_softmax_backward, gpu::log_softmax_backward>(dy.device(), y.get(), dy, view,
                                                                    dx);
    return {dx};
  });
}

namespace {

using cpu::wide;
using cpu::Wide;

template <class T>
void rows(const View& v, const T* x, T* y) {
  cpu::for_rows(v, [&](std::int64_t at, std::int64_t count) {
    cpu::RowExponentials<T> e(x + at, v.n, count);
    cpu::map_row(
        e.sum, count, [](auto sum) { return log(sum); }, e.sum);
    for (std::int64_t r = 0; r < count; ++r) {
      const cpu::Simd<Wide<T>> m = e.max[r], log_sum = Wide<T>(e.sum[r]);
      cpu::map_row(
          y + at + r * v.n, v.n, [m, log_sum](auto x) { return (x - m) - log_sum; },
          x + at + r * v.n);
    }
  });
}

// log of the nearest T, and what that leaves: as good as in double, and faster.
template <class T>
void log_of(const double* sums, std::int64_t n, T* y) {
  T rest[cpu::most_columns];
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    y[i] = T(sums[i]);
    rest[i] = T(sums[i] - static_cast<double>(y[i]));
  }
  cpu::map_row(
      y, n, [](auto high, auto rest) { return log(high) + rest / high; }, y, &rest[0]);
}

// y, or what is rounded to it, holds exp(x − m) until its sum is known.
template <class T>
void columns(const View& v, const T* x, T* y) {
  cpu::for_columns(v, [&](std::int64_t at, std::int64_t width) {
    const cpu::Unrounded<T> near(y + at, v.n, width, v.inner);
    const cpu::ColumnExponentials<T> e(x + at, v, width, near.data, near.step);
    Wide<T> log_sum[cpu::most_columns];
    log_of(e.sum, width, log_sum);
    for (std::int64_t k = 0; k < v.n; ++k)
      cpu::map_row(
          y + at + k * v.inner, width, [](auto x, auto m, auto s) { return (x - m) - s; },
          x + at + k * v.inner, &e.max[0], &log_sum[0]);
  });
}

template <class T>
void backward_rows(const View& v, const T* y, const T* dy, T* dx) {
  cpu::for_rows(v, [&](std::int64_t at, std::int64_t count) {
    for (std::int64_t o = at; o < at + count * v.n; o += v.n) {
      const cpu::Simd<Wide<T>> sum = Wide<T>(cpu::row_sum(dy + o, v.n));
      cpu::map_row(
          dx + o, v.n, [sum](auto y, auto g) { return g - exp(y) * sum; }, y + o, dy + o);
    }
  });
}

template <class T>
void backward_columns(const View& v, const T* y, const T* dy, T* dx) {
  cpu::for_columns(v, [&](std::int64_t at, std::int64_t width) {
    const std::int64_t step = v.inner;
    double sums[cpu::most_columns] = {};
    cpu::add_rows(0, v.n, width, sums,
                  [=, g = dy + at](auto k, auto c) { return wide(g[k * step + c]); });
    Wide<T> sum[cpu::most_columns];
    std::copy_n(sums, width, sum);
    for (std::int64_t k = at; k < at + v.n * step; k += step)
      cpu::map_row(
          dx + k, width, [](auto y, auto g, auto sum) { return g - exp(y) * sum; }, y + k, dy + k,
          &sum[0]);
  });
}

}  // namespace

void cpu::log_softmax(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "log_softmax", [&](auto zero) {
    using T = decltype(zero);
    along_lines(
        v, [](auto... a) { rows(a...); }, [](auto... a) { columns(a...); }, y.data<T>(),
        x.data<T>());
  });
}

void cpu::log_softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double, bf16>(y.dtype(), "log_softmax", [&](auto zero) {
    using T = decltype(zero);
    along_lines(
        v, [](auto... a) { backward_rows(a...); }, [](auto... a) { backward_columns(a...); },
        dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
