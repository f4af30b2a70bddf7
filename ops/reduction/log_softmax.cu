#include "ebb/ops/reduction/log_softmax.h"
#include "ebb/ops/reduction/softmax.cuh"

namespace ebb {
namespace {

template <class T>
struct LogSoftmax {
  using C = gpu::Compute<T>;
  T* y;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const auto [max, sum] = gpu::max_and_sum<C>(row);
    const C m = max;
    const C log_sum = log(sum);
    row.write(y, [=](auto, C x) { return (x - m) - log_sum; });
  }
};

template <class T>
struct LogSoftmaxBackward {
  using C = gpu::Compute<T>;
  T* dx;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const C sum = row.sum([](auto, C, C dy) { return dy; });
    row.write(dx, [=](auto, C y, C dy) { return dy - gpu::power_of_e(y) * sum; });
  }
};

}  // namespace

void gpu::log_softmax(const Tensor& x, const View& v, Tensor& y) {
  lines<LogSoftmax>("log_softmax", v, y, x);
}

void gpu::log_softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  lines<LogSoftmaxBackward>("log_softmax", v, dx, y, dy);
}

}  // namespace ebb
