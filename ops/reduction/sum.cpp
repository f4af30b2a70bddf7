#include "ebb/ops/reduction/sum.h"

#include "ebb/ops/sums.h"

namespace ebb {

Tensor sum(const Tensor& x, const ReduceOptions& options) {
  require_floating("sum", "x", x);
  return scaled_sum("sum", x, Axes("sum", x.shape(), options), 1);
}

namespace {

Tensor repeat(Tensor dy, const Axes& axes, double factor, const Shape& shape) {
  for (size_t p = axes.passes.size(); p-- > 0;) {
    const View& view = axes.passes[p];
    Tensor dx =
        p == 0 ? empty(shape, dy.options()) : empty({view.outer, view.n, view.inner}, dy.options());
    run<cpu::repeat_along, gpu::repeat_along>(dy.device(), dy, view, p == 0 ? factor : 1.0, dx);
    dy = dx;
  }
  return dy;
}

}  // namespace

Tensor scaled_sum(const char* op, const Tensor& x, const Axes& axes, double factor) {
  // Between two passes f32 for bf16, so that only the result is rounded to bf16.
  const Dtype between = x.dtype() == Dtype::bf16 ? Dtype::f32 : x.dtype();
  Tensor y = x;
  for (size_t p = 0; p < axes.passes.size(); ++p) {
    const bool last = p + 1 == axes.passes.size();
    const View& view = axes.passes[p];
    Tensor sums = last ? empty(axes.result, x.options())
                       : empty({view.outer, view.inner}, {between, x.device()});
    run<cpu::sum_along, gpu::sum_along>(x.device(), y, view, last ? factor : 1.0, sums);
    y = sums;
  }
  return record(op, y, {x}, [axes, factor, shape = x.shape()](const Tensor& dy) -> Gradients {
    return {repeat(dy, axes, factor, shape)};
  });
}

namespace {

// The sum is a T before it is scaled, so that a mean overflows where its sum does, on both devices.
template <class T>
T scaled(double sum, double factor) {
  return T(factor * static_cast<double>(T(sum)));
}

// Long rows in blocks, so that threads may share one.
template <class T>
void sum_rows(const T* x, const View& v, double factor, T* y) {
  constexpr std::int64_t block = 1 << 16;
  if (v.n >= 2 * block) {
    for (std::int64_t o = 0; o < v.outer; ++o)
      y[o] = scaled<T>(block_sum<double>(v.n, block,
                                         [row = x + o * v.n](std::int64_t begin, std::int64_t end) {
                                           return cpu::row_sum(row + begin, end - begin);
                                         }),
                       factor);
    return;
  }
  parallel_for(v.outer, 16384 / (v.n + 16), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o)
      y[o] = scaled<T>(cpu::row_sum(x + o * v.n, v.n), factor);
  });
}

template <class T>
void sum_columns(const T* x, const View& v, double factor, T* y) {
  parallel_for(v.outer, 32768 / (v.n * v.inner + 16), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T* matrix = x + o * v.n * v.inner;
      const auto add = [&](std::int64_t first, std::int64_t last, std::int64_t column,
                           std::int64_t columns, double** sums) {
        cpu::add_rows(first, last, columns, sums[0],
                      [from = matrix + column, step = v.inner](auto row, auto c) {
                        return from[row * step + c];
                      });
      };
      const std::vector<double> sums = cpu::column_sums<1>(v.n, v.inner, add);
      for (std::int64_t i = 0; i < v.inner; ++i)
        y[o * v.inner + i] = scaled<T>(sums[static_cast<size_t>(i)], factor);
    }
  });
}

// dx[o, k] = scale · dy[o], by runs of equal elements.
template <class T>
void repeat_rows(const T* dy, const View& v, T scale, T* dx) {
  parallel_for(v.outer * v.n, 32768, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t o = i / v.n;
      const std::int64_t stop = std::min(end, (o + 1) * v.n);
      for (const T value = scale * dy[o]; i < stop; i += cpu::lanes<T>)
        cpu::Simd<T>(value).store(dx + i, stop - i);
      i = stop;
    }
  });
}

}  // namespace

void cpu::sum_along(const Tensor& x, const View& v, double factor, Tensor& y) {
  visit<float, double>(x.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    (v.inner == 1 ? sum_rows<T> : sum_columns<T>)(x.data<T>(), v, factor, y.data<T>());
  });
}

void cpu::repeat_along(const Tensor& dy, const View& v, double factor, Tensor& dx) {
  visit<float, double>(dy.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    const T scale = T(factor);
    if (v.inner == 1) return repeat_rows(from, v, scale, to);
    parallel_for(v.outer * v.n, 32768 / (v.inner + 4), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        array(to + r * v.inner, v.inner) = scale * array(from + r / v.n * v.inner, v.inner);
    });
  });
}

}  // namespace ebb
