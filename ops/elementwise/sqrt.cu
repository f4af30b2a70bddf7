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

void gpu::sqrt(const Tensor& x, Tensor& y) { map("sqrt", Sqrt{}, y, x); }

void gpu::sqrt_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map("sqrt", SqrtBackward{}, dx, y, dy);
}

}  // namespace ebb
