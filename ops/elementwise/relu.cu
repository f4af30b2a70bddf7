#include "ebb/ops/elementwise/relu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

struct Relu {
  template <class T>
  __device__ T operator()(T x) const {
    return x <= 0 ? T(0) : x;
  }
};

struct ReluBackward {
  template <class T>
  __device__ T operator()(T y, T dy) const {
    return y <= 0 ? T(0) : dy;
  }
};

}  // namespace

void gpu::relu(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "relu", [&](auto zero) {
    using T = decltype(zero);
    map<T>("relu", Relu{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::relu_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "relu", [&](auto zero) {
    using T = decltype(zero);
    map<T>("relu", ReluBackward{}, dy.numel(), dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
