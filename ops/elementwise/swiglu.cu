#include "ebb/ops/elementwise/swiglu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::reciprocal;
using gpu::Values;

template <class T>
struct Swiglu {
  using C = Compute<T>;
  __device__ C operator()(C gate, C up) const {
    return gate * reciprocal(1 + exponential<T>(-gate)) * up;
  }
};

template <class T>
struct SwigluGradients {
  using C = Compute<T>;
  __device__ Values<C, 2> operator()(C gate, C up, C dy) const {
    const C s = reciprocal(1 + exponential<T>(-gate));
    const C silu = gate * s;
    return {{dy * (s + silu * (1 - s)) * up, dy * silu}};
  }
};

}  // namespace

void gpu::swiglu(const Tensor& gate, const Tensor& up, Tensor& y) {
  map<Swiglu>("swiglu", y, gate, up);
}

void gpu::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate,
                          Tensor& dup) {
  map<SwigluGradients>("swiglu", std::tie(dgate, dup), gate, up, dy);
}

}  // namespace ebb
