#include "ebb/ops/elementwise/exp.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

struct Exp {
  template <class T>
  __device__ T operator()(T x) const {
    return ::exp(x);
  }
};

struct ExpBackward {
  template <class T>
  __device__ T operator()(T y, T dy) const {
    return dy * y;
  }
};

}  // namespace

void gpu::exp_forward(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "exp", [&](auto zero) {
    using T = decltype(zero);
    map<T>("exp", Exp{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::exp_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "exp", [&](auto zero) {
    using T = decltype(zero);
    map<T>("exp", ExpBackward{}, dy.numel(), dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
