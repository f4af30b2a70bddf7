#include "ebb/ops/elementwise/swiglu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::reciprocal;
using gpu::Values;

struct Swiglu {
  template <class T>
  __device__ T operator()(T gate, T up) const {
    return gate * reciprocal(1 + exp(-gate)) * up;
  }
};

struct SwigluGradients {
  template <class T>
  __device__ Values<T, 2> operator()(T gate, T up, T dy) const {
    const T s = reciprocal(1 + exp(-gate));
    const T silu = gate * s;
    return {{dy * up * (s + silu * (1 - s)), dy * silu}};
  }
};

}  // namespace

void gpu::swiglu(const Tensor& gate, const Tensor& up, Tensor& y) {
  visit<float, double, bf16>(gate.dtype(), "swiglu", [&](auto zero) {
    using T = decltype(zero);
    map<T>("swiglu", Swiglu{}, gate.numel(), y.data<T>(), gate.data<T>(), up.data<T>());
  });
}

void gpu::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate,
                          Tensor& dup) {
  visit<float, double, bf16>(gate.dtype(), "swiglu", [&](auto zero) {
    using T = decltype(zero);
    map<T>("swiglu", SwigluGradients{}, gate.numel(),
           Pointers<T, 2>{{dgate.data<T>(), dup.data<T>()}}, gate.data<T>(), up.data<T>(),
           dy.data<T>());
  });
}

}  // namespace ebb
