#include "ebb/ops/elementwise/sigmoid.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::reciprocal;

template <class T>
struct Sigmoid {
  using C = Compute<T>;
  __device__ C operator()(C x) const { return reciprocal(1 + exponential<T>(-x)); }
};

struct SigmoidBackward {
  template <class T>
  __device__ T operator()(T y, T dy) const {
    return dy * (y * (1 - y));
  }
};

}  // namespace

void gpu::sigmoid(const Tensor& x, Tensor& y) { map<Sigmoid>("sigmoid", y, x); }

void gpu::sigmoid_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map("sigmoid", SigmoidBackward{}, dx, y, dy);
}

}  // namespace ebb
