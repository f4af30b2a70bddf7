#include "ebb/ops/pooling/avg_pool2d.h"

#include "ebb/core/parallel.h"

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

// f(plane, output, window) for every output; the planes are shared out over threads.
template <class F>
void for_windows(const PoolSize& s, const Divisor& divisor, F&& f) {
  constexpr std::int64_t worth_a_thread = 1 << 15;
  parallel_for(s.planes, 1 + worth_a_thread / (s.h * s.w),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t plane = begin; plane < end; ++plane)
                   for (std::int64_t p = 0; p < s.p; ++p)
                     for (std::int64_t q = 0; q < s.q; ++q)
                       f(plane, (plane * s.p + p) * s.q + q, window_of(s, divisor, p, q));
               });
}

}  // namespace

void cpu::avg_pool2d(const PoolSize& s, const Divisor& divisor, const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const T* in = x.data<T>();
    T* out = y.data<T>();
    for_windows(s, divisor, [&](std::int64_t plane, std::int64_t i, const Window& v) {
      T sum = 0;
      for (std::int64_t h = v.h0; h < v.h1; ++h) {
        T row = 0;  // windows may be large: rows are summed on their own
        for (std::int64_t w = v.w0; w < v.w1; ++w) row += in[(plane * s.h + h) * s.w + w];
        sum += row;
      }
      out[i] = v.h0 < v.h1 && v.w0 < v.w1 ? sum / static_cast<T>(v.divisor) : T(0);
    });
  });
}

void cpu::avg_pool2d_backward(const PoolSize& s, const Divisor& divisor, const Tensor& dy,
                              Tensor& dx) {
  visit<float, double>(dy.dtype(), "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const T* in = dy.data<T>();
    T* out = dx.data<T>();
    std::fill_n(out, dx.numel(), T(0));
    for_windows(s, divisor, [&](std::int64_t plane, std::int64_t i, const Window& v) {
      if (v.h0 >= v.h1 || v.w0 >= v.w1) return;
      const T share = in[i] / static_cast<T>(v.divisor);
      for (std::int64_t h = v.h0; h < v.h1; ++h)
        for (std::int64_t w = v.w0; w < v.w1; ++w) out[(plane * s.h + h) * s.w + w] += share;
    });
  });
}

}  // namespace ebb
