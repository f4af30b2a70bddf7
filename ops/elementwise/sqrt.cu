#include "ebb/ops/elementwise/sqrt.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

struct Sqrt {
  template <class T>
  __device__ T operator()(T x) const {
    return ::sqrt(x);
  }
};

struct SqrtBackward {
  template <class T>
  __device__ T operator()(T y, T dy) const {
    return dy / (2 * y);
  }
};

}  // namespace

void gpu::sqrt(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "sqrt", [&](auto zero) {
    using T = decltype(zero);
    map<T>("sqrt", Sqrt{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::sqrt_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "sqrt", [&](auto zero) {
    using T = decltype(zero);
    map<T>("sqrt", SqrtBackward{}, dy.numel(), dx.data<T>(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
