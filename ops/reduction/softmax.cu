#include "ebb/ops/reduction/softmax.cuh"
#include "ebb/ops/reduction/softmax.h"

namespace ebb {
namespace {

template <class T>
struct Softmax {
  using C = gpu::Compute<T>;
  T* y;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const auto [max, sum] = gpu::max_and_sum<C>(row);
    const gpu::Powers<T> share{max, 1 / sum};
    row.write(y, [=](auto, C x) { return share(x); });
  }
};

template <class T>
struct SoftmaxBackward {
  using C = gpu::Compute<T>;
  T* dx;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const C dot = row.sum([](auto, C y, C dy) { return y * dy; });
    row.write(dx, [=](auto, C y, C dy) { return y * (dy - dot); });
  }
};

}  // namespace

void gpu::softmax(const Tensor& x, const View& v, Tensor& y) { lines<Softmax>("softmax", v, y, x); }

void gpu::softmax_backward(const Tensor& y, const Tensor& dy, const View& v, Tensor& dx) {
  lines<SoftmaxBackward>("softmax", v, dx, y, dy);
}

}  // namespace ebb
