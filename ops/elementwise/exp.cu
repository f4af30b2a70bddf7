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

void gpu::exp_forward(const Tensor& x, Tensor& y) { map("exp", Exp{}, y, x); }

void gpu::exp_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map("exp", ExpBackward{}, dx, y, dy);
}

}  // namespace ebb
