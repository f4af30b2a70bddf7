#include "ebb/ops/elementwise/silu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::reciprocal;

struct Silu {
  template <class T>
  __device__ T operator()(T x) const {
    return x * reciprocal(1 + exp(-x));
  }
};

struct SiluBackward {
  template <class T>
  __device__ T operator()(T x, T dy) const {
    const T s = reciprocal(1 + exp(-x));
    return dy * s * (1 + x * (1 - s));
  }
};

}  // namespace

void gpu::silu(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "silu", [&](auto zero) {
    using T = decltype(zero);
    map<T>("silu", Silu{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::silu_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), "silu", [&](auto zero) {
    using T = decltype(zero);
    map<T>("silu", SiluBackward{}, x.numel(), dx.data<T>(), x.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
