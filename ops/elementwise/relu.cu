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

void gpu::relu(const Tensor& x, Tensor& y) { map("relu", Relu{}, y, x); }

void gpu::relu_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map("relu", ReluBackward{}, dx, y, dy);
}

}  // namespace ebb
