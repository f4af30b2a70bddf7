#include "ebb/ops/reduction/log_softmax.h"

#include "ebb/ops/map.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor log_softmax(const Tensor& x, SoftmaxOptions options) {
  require_floating("log_softmax", "x", x);
  const View view = view_along("log_softmax", x.shape(), options.dim);
  Tensor y = empty_like(x);
  run<cpu::log_softmax, gpu::log_softmax>(x.device(), x, view, y);
  return record("log_softmax", y, {x}, [y = Saved(y), view](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    run<cpu::log_softmax_backward, gpu::log_softmax_backward>(dy.device(), y.get(), dy, view, dx);
    return {dx};
  });
}

namespace {

// Eigen arrays stepping `inner` from element to element: one code for every dimension, since a
// stride of 1 is what rows have.
template <class T>
using Line = Eigen::Map<cpu::Array<T>, 0, Eigen::InnerStride<>>;
template <class T>
using ConstLine = Eigen::Map<const cpu::Array<T>, 0, Eigen::InnerStride<>>;

// Calls f(first element) for every line along n.
template <class F>
void for_lines(const View& v, F f) {
  parallel_for(v.kept(), 16384 / (v.n + 8), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end && v.n > 0; ++r)
      f(r / v.inner * v.n * v.inner + r % v.inner);
  });
}

template <class T>
void line(const T* x, std::int64_t n, std::int64_t stride, T* y, cpu::Array<T>& row) {
  row = ConstLine<T>(x, n, Eigen::InnerStride<>(stride));
  row -= row.maxCoeff();
  cpu::Array<T> e = cpu::exp(row);
  const T* p = e.data();
  row -= T(std::log(cpu::sum_of(0, n, [p](std::int64_t i) { return p[i]; })));
  Line<T>(y, n, Eigen::InnerStride<>(stride)) = row;
}

}  // namespace

void cpu::log_softmax(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double>(x.dtype(), "log_softmax", [&](auto zero) {
    using T = decltype(zero);
    for_lines(v, [&](std::int64_t at) {
      static thread_local Array<T> row;
      line(x.data<T>() + at, v.n, v.inner, y.data<T>() + at, row);
    });
  });
}

void cpu::log_softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double>(y.dtype(), "log_softmax", [&](auto zero) {
    using T = decltype(zero);
    for_lines(v, [&](std::int64_t at) {
      const Eigen::InnerStride<> step(v.inner);
      const Array<T> g = ConstLine<T>(dy.data<T>() + at, v.n, step);
      const Array<T> out = ConstLine<T>(y.data<T>() + at, v.n, step);
      const T* p = g.data();
      const T sum = T(sum_of(0, v.n, [p](std::int64_t i) { return p[i]; }));
      Line<T>(dx.data<T>() + at, v.n, step) = g - cpu::exp(out) * sum;
    });
  });
}

}  // namespace ebb
