#include "ebb/ops/pooling/avg_pool2d.h"

#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/pooling/columns.h"

namespace ebb {

Tensor avg_pool2d(const Tensor& x, Pair kernel_size, AvgPool2dOptions o) {
  const PoolSize size = pool_size(
      "avg_pool2d", x, {kernel_size, o.stride.value_or(kernel_size), o.padding, 1, o.ceil_mode});
  require(!o.divisor_override || *o.divisor_override != 0, Kind::value, "avg_pool2d",
          "divisor_override must not be 0", 0, "another number");
  const Divisor divisor{o.count_include_pad, o.divisor_override.value_or(0)};
  Tensor y = empty(pool_shape(x, size), x.options());
  run<cpu::avg_pool2d, gpu::avg_pool2d>(x.device(), size, divisor, x, y);
  return record(
      "avg_pool2d", y, {x}, [size, divisor, shape = x.shape()](const Tensor& dy) -> Gradients {
        Tensor dx = empty(shape, dy.options());
        run<cpu::avg_pool2d_backward, gpu::avg_pool2d_backward>(dy.device(), size, divisor, dy, dx);
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

// f(plane) for every plane, shared out over threads.
template <class F>
void for_planes(const PoolSize& s, F&& f) {
  constexpr std::int64_t worth_a_thread = 1 << 15;
  parallel_for(s.planes, 1 + worth_a_thread / (s.h * s.w),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t plane = begin; plane < end; ++plane) f(plane);
               });
}

// Windows may be large: rows are summed on their own.
template <class T>
T window_mean(const PoolSize& s, const T* x, const Window& v) {
  T sum = 0;
  for (std::int64_t h = v.h0; h < v.h1; ++h) {
    T row = 0;
    for (std::int64_t w = v.w0; w < v.w1; ++w) row += x[h * s.w + w];
    sum += row;
  }
  return v.h0 < v.h1 && v.w0 < v.w1 ? sum / static_cast<T>(v.divisor) : T(0);
}

// The outputs [q, q + n) of a row, whose windows lie in the image's width and are otherwise v.
template <class T>
void mean_columns(const PoolSize& s, const T* x, const Window& v, std::int64_t q, std::int64_t n,
                  T* y) {
  const std::int64_t whole = cpu::whole_registers(n);
  T sum[cpu::pool_block] = {};
  for (std::int64_t h = v.h0; h < v.h1; ++h) {
    const std::int64_t at = h * s.w + q * s.stride_w - s.padding_w;
    cpu::RowTaps<T> taps(s, x + at, s.h * s.w - at, n);
    T row[cpu::pool_block] = {};
    for (std::int64_t c = 0; c < s.kernel_w; ++c) {
      const T* pixels = taps.at(c);
      for (std::int64_t i = 0; i < whole; ++i) row[i] += pixels[i];
    }
    for (std::int64_t i = 0; i < whole; ++i) sum[i] += row[i];
  }
  for (std::int64_t i = 0; i < n; ++i) y[i] = sum[i] / static_cast<T>(v.divisor);
}

template <class T>
void mean_row(const PoolSize& s, const Divisor& divisor, const T* x, std::int64_t p, T* y) {
  const cpu::Columns inside(s);
  const auto edges = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t q = begin; q < end; ++q)
      y[q] = window_mean(s, x, window_of(s, divisor, p, q));
  };
  edges(0, inside.begin);
  for (std::int64_t q = inside.begin; q < inside.end; q += cpu::pool_block)
    mean_columns(s, x, window_of(s, divisor, p, q), q, std::min(cpu::pool_block, inside.end - q),
                 y + q);
  edges(inside.end, s.q);
}

// What a row of outputs gives to each row of its windows: first added up along the width.
template <class T>
void scatter_row(const PoolSize& s, const Divisor& divisor, const T* dy, std::int64_t p, T* line,
                 T* dx) {
  std::fill_n(line, s.w, T(0));
  Window v = window_of(s, divisor, p, 0);
  if (v.h0 >= v.h1) return;
  const cpu::Columns inside(s);
  for (std::int64_t q = 0; q < s.q; ++q) {
    if (inside.begin < q && q < inside.end) {
      v.w0 += s.stride_w;
      v.w1 += s.stride_w;
    } else {
      v = window_of(s, divisor, p, q);
    }
    const T share = v.w0 < v.w1 ? dy[q] / static_cast<T>(v.divisor) : T(0);
    for (std::int64_t w = v.w0; w < v.w1; ++w) line[w] += share;
  }
  for (std::int64_t h = v.h0; h < v.h1; ++h)
    for (std::int64_t w = 0; w < s.w; ++w) dx[h * s.w + w] += line[w];
}

}  // namespace

void cpu::avg_pool2d(const PoolSize& s, const Divisor& divisor, const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    for_planes(s, [&](std::int64_t plane) {
      for (std::int64_t p = 0; p < s.p; ++p)
        mean_row(s, divisor, x.data<T>() + plane * s.h * s.w, p,
                 y.data<T>() + (plane * s.p + p) * s.q);
    });
  });
}

void cpu::avg_pool2d_backward(const PoolSize& s, const Divisor& divisor, const Tensor& dy,
                              Tensor& dx) {
  visit<float, double>(dy.dtype(), "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    for_planes(s, [&](std::int64_t plane) {
      std::vector<T> line(static_cast<size_t>(s.w));
      T* to = dx.data<T>() + plane * s.h * s.w;
      std::fill_n(to, s.h * s.w, T(0));
      for (std::int64_t p = 0; p < s.p; ++p)
        scatter_row(s, divisor, dy.data<T>() + (plane * s.p + p) * s.q, p, line.data(), to);
    });
  });
}

}  // namespace ebb
