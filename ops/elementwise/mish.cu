#include "ebb/ops/elementwise/mish.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::reciprocal;

struct Mish {
  template <class T>
  __device__ T operator()(T x) const {
    const T u = exp(x > 20 ? T(20) : x);
    const T w = u * (u + 2);
    return x * (w * reciprocal(w + 2));
  }
};

struct MishBackward {
  template <class T>
  __device__ T operator()(T x, T dy) const {
    const T c = x > 20 ? T(20) : x;
    const T u = exp(c);
    const T w = u * (u + 2);
    const T r = reciprocal(w + 2);
    return dy * r * (w + 4 * u * (u + 1) * c * r);
  }
};

}  // namespace

void gpu::mish(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "mish", [&](auto zero) {
    using T = decltype(zero);
    map<T>("mish", Mish{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::mish_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "mish", [&](auto zero) {
    using T = decltype(zero);
    map<T>("mish", MishBackward{}, dy.numel(), dx.data<T>(), x.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
