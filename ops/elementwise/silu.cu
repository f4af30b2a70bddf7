#include "ebb/ops/elementwise/silu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::reciprocal;

template <class T>
struct Silu {
  using C = Compute<T>;
  __device__ C operator()(C x) const { return x * reciprocal(1 + exponential<T>(-x)); }
};

template <class T>
struct SiluBackward {
  using C = Compute<T>;
  __device__ C operator()(C x, C dy) const {
    const C s = reciprocal(1 + exponential<T>(-x));
    return dy * s * (1 + x * (1 - s));
  }
};

}  // namespace

void gpu::silu(const Tensor& x, Tensor& y) { map<Silu>("silu", y, x); }

void gpu::silu_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  map<SiluBackward>("silu", dx, x, dy);
}

}  // namespace ebb
