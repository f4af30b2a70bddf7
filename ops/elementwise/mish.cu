#include "ebb/ops/elementwise/mish.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::reciprocal;

template <class T>
struct Mish {
  using C = Compute<T>;
  static constexpr int packs = std::is_same_v<T, bf16> ? 2 : 1;
  __device__ C operator()(C x) const {
    const C u = exponential<T>(x > 20 ? C(20) : x);
    const C w = u * (u + 2);
    return x * (w * reciprocal(w + 2));
  }
};

template <class T>
struct MishBackward {
  using C = Compute<T>;
  __device__ C operator()(C x, C dy) const {
    const C c = x > 20 ? C(20) : x;
    const C u = exponential<T>(c);
    const C w = u * (u + 2);
    const C r = reciprocal(w + 2);
    return dy * r * (w + 4 * u * (u + 1) * c * r);
  }
};

}  // namespace

void gpu::mish(const Tensor& x, Tensor& y) { map<Mish>("mish", y, x); }

void gpu::mish_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  map<MishBackward>("mish", dx, x, dy);
}

}  // namespace ebb
