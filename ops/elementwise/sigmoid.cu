#include "ebb/ops/elementwise/sigmoid.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::reciprocal;

template <class T>
struct Sigmoid {
  using C = Compute<T>;
  __device__ C operator()(C x) const { return reciprocal(1 + exponential<T>(-x)); }
};

struct SigmoidBackward {
  template <class T>
  __device__ T operator()(T y, T dy) const {
    return dy * (y * (1 - y));
  }
};

}  // namespace

void gpu::sigmoid(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "sigmoid", [&](auto zero) {
    using T = decltype(zero);
    map<T>("sigmoid", Sigmoid<T>(), x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::sigmoid_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "sigmoid", [&](auto zero) {
    using T = decltype(zero);
    map<T>("sigmoid", SigmoidBackward{}, dy.numel(), dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
