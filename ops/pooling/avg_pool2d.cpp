#include "ebb/ops/pooling/avg_pool2d.h"

#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/pooling/columns.h"
#include "ebb/ops/sums.h"

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

// Windows may be large: their columns are summed first, for all outputs of the row, then those.
template <class T>
void mean_row(const PoolSize& s, const Divisor& divisor, const T* x, std::int64_t p, T* line,
              T* y) {
  const Window v = window_of(s, divisor, p, 0);
  if (v.h0 >= v.h1) return void(std::fill_n(y, s.q, T(0)));
  std::copy_n(x + v.h0 * s.w, s.w, line);
  for (std::int64_t h = v.h0 + 1; h < v.h1; ++h)
    for (std::int64_t w = 0; w < s.w; ++w) line[w] += x[h * s.w + w];
  const cpu::Columns inside(s, 8);
  const auto edges = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t q = begin; q < end; ++q) {
      const Window one = window_of(s, divisor, p, q);
      T sum = 0;
      for (std::int64_t w = one.w0; w < one.w1; ++w) sum += line[w];
      y[q] = one.w0 < one.w1 ? sum / static_cast<T>(one.divisor) : T(0);
    }
  };
  edges(0, inside.begin);
  for (std::int64_t q = inside.begin; q < inside.end; q += cpu::pool_block)
    mean_columns(s, line, static_cast<T>(window_of(s, divisor, p, q).divisor), q,
                 std::min(cpu::pool_block, inside.end - q), y + q);
  edges(inside.end, s.q);
}

// One window that is the image.
bool covers(const PoolSize& s) {
  return s.p == 1 && s.q == 1 && s.padding_h == 0 && s.padding_w == 0 && s.kernel_h == s.h &&
         s.kernel_w == s.w;
}

// What a row of outputs gives to each row of its windows: first added up along the width.
template <class T>
void scatter_row(const PoolSize& s, const Divisor& divisor, const T* dy, std::int64_t p, T* line,
                 T* dx) {
  std::fill_n(line, s.w, T(0));
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
    const T* from = x.data<T>();
    T* to = y.data<T>();
    if (covers(s)) {
      const auto size = s.h * s.w;
      const T whole = static_cast<T>(window_of(s, divisor, 0, 0).divisor);
      return for_planes(s, [=](std::int64_t plane) {
        to[plane] =
            static_cast<T>(sum_of(0, size, [=, v = from + plane * size](auto i) { return v[i]; })) /
            whole;
      });
    }
    for_planes(s, [&](std::int64_t plane) {
      static thread_local std::vector<T> line;
      line.resize(static_cast<size_t>(s.w));
      for (std::int64_t p = 0; p < s.p; ++p)
        mean_row(s, divisor, from + plane * s.h * s.w, p, line.data(),
                 to + (plane * s.p + p) * s.q);
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
