#include "ebb/ops/pooling/avg_pool2d.h"

#include <vector>

#include "ebb/ops/map.h"
#include "ebb/ops/pooling/columns.h"
#include "ebb/ops/side_by_side.h"

namespace ebb {

Tensor avg_pool2d(const Tensor& x, Pair kernel_size, AvgPool2dOptions o) {
  const PoolSize size = pool_size(
      "avg_pool2d", x, {kernel_size, o.stride.value_or(kernel_size), o.padding, 1, o.ceil_mode});
  require(!o.divisor_override || *o.divisor_override != 0, Kind::value, "avg_pool2d",
          "divisor_override must not be 0", 0, "another number");
  const Divisor divisor{o.count_include_pad, o.divisor_override.value_or(0)};
  Tensor y = empty(pool_shape(x, size), x.options());
  run_as_is<cpu::avg_pool2d, gpu::avg_pool2d>(x.device(), size, divisor, x, y);
  return record("avg_pool2d", y, {x},
                [size, divisor, shape = x.shape()](const Tensor& dy) -> Gradients {
                  Tensor dx = empty(shape, dy.options());
                  run_as_is<cpu::avg_pool2d_backward, gpu::avg_pool2d_backward>(dy.device(), size,
                                                                                divisor, dy, dx);
                  return {dx};
                });
}

namespace {

// Of one output: its window clipped to the image, and its divisor.
struct Window {
  std::int64_t h0, h1, w0, w1, divisor;
};

Window window_of(const PoolSize& s, const Divisor& divisor, std::int64_t p, std::int64_t q) {
  const std::int64_t top = p * s.stride_h - s.padding_h;
  const std::int64_t left = q * s.stride_w - s.padding_w;
  const std::int64_t bottom = std::min(top + s.kernel_h, s.h + s.padding_h);
  const std::int64_t right = std::min(left + s.kernel_w, s.w + s.padding_w);
  Window v{std::max<std::int64_t>(top, 0), std::min(bottom, s.h), std::max<std::int64_t>(left, 0),
           std::min(right, s.w), divisor.fixed};
  if (divisor.fixed == 0)
    v.divisor =
        divisor.count_padding ? (bottom - top) * (right - left) : (v.h1 - v.h0) * (v.w1 - v.w0);
  return v;
}

// The outputs [q, q + n) of a row, whose windows lie in the image's width; `line` is the sum of
// their rows of the image.
template <class T>
void mean_columns(const PoolSize& s, const T* line, T divisor, std::int64_t q, std::int64_t n,
                  T* y) {
  const std::int64_t at = q * s.stride_w - s.padding_w;
  cpu::RowTaps<T> taps(s, line + at, s.w - at, n);
  T sum[cpu::pool_block] = {};
  for (std::int64_t c = 0; c < s.kernel_w; ++c) {
    const T* pixels = taps.at(c);
    for (std::int64_t i = 0; i < cpu::whole_registers(n); ++i) sum[i] += pixels[i];
  }
  for (std::int64_t i = 0; i < n; ++i) y[i] = sum[i] / divisor;
}

// Windows may be large: their columns are summed first, for all outputs of the row, then those. V
// is a number of a plane, or those of planes side by side.
template <class V>
void sum_columns(const PoolSize& s, const Window& v, const V* x, V* line) {
  std::copy_n(x + v.h0 * s.w, s.w, line);
  for (std::int64_t h = v.h0 + 1; h < v.h1; ++h)
    for (std::int64_t w = 0; w < s.w; ++w) line[w] = line[w] + x[h * s.w + w];
}

// The outputs [begin, end) of row p, each by itself.
template <class V>
void means(const PoolSize& s, const Divisor& divisor, const V* line, std::int64_t p,
           std::int64_t begin, std::int64_t end, V* y) {
  for (std::int64_t q = begin; q < end; ++q) {
    const Window one = window_of(s, divisor, p, q);
    V sum = V(0);
    for (std::int64_t w = one.w0; w < one.w1; ++w) sum = sum + line[w];
    y[q] = one.w0 < one.w1 ? sum / V(one.divisor) : V(0);
  }
}

template <class V>
void mean_row(const PoolSize& s, const Divisor& divisor, const V* x, std::int64_t p, V* line,
              V* y) {
  const Window v = window_of(s, divisor, p, 0);
  if (v.h0 >= v.h1) return void(std::fill_n(y, s.q, V(0)));
  sum_columns(s, v, x, line);
  cpu::Columns inside(s, 8);
  if constexpr (std::is_floating_point_v<V>) {
    for (std::int64_t q = inside.begin; q < inside.end; q += cpu::pool_block)
      mean_columns(s, line, static_cast<V>(window_of(s, divisor, p, q).divisor), q,
                   std::min(cpu::pool_block, inside.end - q), y + q);
  } else {
    inside.end = inside.begin;
  }
  means(s, divisor, line, p, 0, inside.begin, y);
  means(s, divisor, line, p, inside.end, s.q, y);
}

// One window that is the image.
bool covers(const PoolSize& s) {
  return s.p == 1 && s.q == 1 && s.padding_h == 0 && s.padding_w == 0 && s.kernel_h == s.h &&
         s.kernel_w == s.w;
}

// What a row of outputs gives to each row of its windows: first added up along the width.
template <class V>
void scatter_row(const PoolSize& s, const Divisor& divisor, const V* dy, std::int64_t p, V* line,
                 V* dx) {
  std::fill_n(line, s.w, V(0));
  Window v = window_of(s, divisor, p, 0);
  if (v.h0 >= v.h1) return;
  const cpu::Columns inside(s, 1);
  for (std::int64_t q = 0; q < s.q; ++q) {
    if (inside.begin < q && q < inside.end) {
      v.w0 += s.stride_w;
      v.w1 += s.stride_w;
    } else {
      v = window_of(s, divisor, p, q);
    }
    const V share = v.w0 < v.w1 ? dy[q] / V(v.divisor) : V(0);
    for (std::int64_t w = v.w0; w < v.w1; ++w) line[w] = line[w] + share;
  }
  for (std::int64_t h = v.h0; h < v.h1; ++h)
    for (std::int64_t w = 0; w < s.w; ++w) dx[h * s.w + w] = dx[h * s.w + w] + line[w];
}

template <class V>
void mean_plane(const PoolSize& s, const Divisor& divisor, const V* x, V* line, V* y) {
  for (std::int64_t p = 0; p < s.p; ++p) mean_row(s, divisor, x, p, line, y + p * s.q);
}

template <class V>
void scatter_plane(const PoolSize& s, const Divisor& divisor, const V* dy, V* line, V* dx) {
  std::fill_n(dx, s.h * s.w, V(0));
  for (std::int64_t p = 0; p < s.p; ++p) scatter_row(s, divisor, dy + p * s.q, p, line, dx);
}

// f(from, line, to) for every plane of n numbers that becomes one of m, or for those side by side:
// as numbers of type A.
template <class A, class T, class F>
void with_planes_as(const PoolSize& s, std::int64_t n, std::int64_t m, const T* from, T* to,
                    const F& f) {
  using V = cpu::Simd<A>;
  cpu::for_planes(s, cpu::planes_together<A>(s), [&](std::int64_t plane, std::int64_t count) {
    static thread_local std::vector<V> near;
    near.resize(static_cast<size_t>(s.w + (count > 1 ? n + m : 0)), V(0));
    V *line = near.data(), *x = line + s.w, *y = x + n;
    cpu::with_numbers_as<A>(from + plane * n, count * n, to + plane * m, count * m,
                            [&](const A* from, A* to) {
                              if (count == 1) return f(from, reinterpret_cast<A*>(line), to);
                              cpu::side_by_side(from, n, count, x);
                              f(static_cast<const V*>(x), line, y);
                              cpu::row_by_row(y, m, count, to);
                            });
  });
}

// Sums are of rows, then of columns, both ways.
template <class T, class F>
void with_planes(const PoolSize& s, std::int64_t n, std::int64_t m, const T* from, T* to,
                 const F& f) {
  if (std::max(s.kernel_h, s.kernel_w) <= cpu::few_terms)
    with_planes_as<cpu::Wide<T>>(s, n, m, from, to, f);
  else
    with_planes_as<double>(s, n, m, from, to, f);
}

}  // namespace

void cpu::avg_pool2d(const PoolSize& s, const Divisor& divisor, const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const std::int64_t size = s.h * s.w;
    if (covers(s)) {
      const auto whole = static_cast<Wide<T>>(window_of(s, divisor, 0, 0).divisor);
      return for_planes(s, 1, [=](std::int64_t plane, std::int64_t) {
        to[plane] = T(static_cast<Wide<T>>(row_sum(from + plane * size, size)) / whole);
      });
    }
    with_planes(s, size, s.p * s.q, from, to,
                [&](const auto* x, auto* line, auto* y) { mean_plane(s, divisor, x, line, y); });
  });
}

void cpu::avg_pool2d_backward(const PoolSize& s, const Divisor& divisor, const Tensor& dy,
                              Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    with_planes(
        s, s.p * s.q, s.h * s.w, dy.data<T>(), dx.data<T>(),
        [&](const auto* dy, auto* line, auto* dx) { scatter_plane(s, divisor, dy, line, dx); });
  });
}

}  // namespace ebb
