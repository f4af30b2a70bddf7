#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::reciprocal;

// (1 + tanh(u)) / 2 = 1 / (1 + e⁻²ᵘ): one exponential, and no cancellation where it is small.
constexpr double twice_c = 1.59576912160573071176;  // 2 √(2/π)

template <class T>
struct GeluTanh {
  using C = Compute<T>;
  __device__ C operator()(C x) const {
    const C twice_u = C(twice_c) * x * (1 + C(0.044715) * x * x);
    return x * reciprocal(1 + exponential<T>(-twice_u));
  }
};

// With s = 1 / (1 + e⁻²ᵘ): s + x s (1 − s) (2u)'. Beyond ±25, s is 0 or 1 in f32 and f64.
template <class T>
struct GeluTanhBackward {
  using C = Compute<T>;
  __device__ C operator()(C x, C dy) const {
    const C b = x > 25 ? C(25) : x < -25 ? C(-25) : x;
    const C s = reciprocal(1 + exponential<T>(-C(twice_c) * b * (1 + C(0.044715) * b * b)));
    const C slope = C(twice_c) * (1 + C(3 * 0.044715) * b * b);
    return dy * (s + b * s * (1 - s) * slope);
  }
};

template <class T>
struct GeluErf {
  using C = Compute<T>;
  __device__ C operator()(C x) const { return x * (erfc(x * C(-M_SQRT1_2)) * C(0.5)); }
};

template <class T>
struct GeluErfBackward {
  using C = Compute<T>;
  __device__ C operator()(C x, C dy) const {
    const C density = exponential<T>(-x * x * C(0.5)) * C(0.39894228040143267794);
    return dy * (erfc(x * C(-M_SQRT1_2)) * C(0.5) + x * density);
  }
};

}  // namespace

void gpu::gelu(const Tensor& x, bool approximate, Tensor& y) {
  approximate ? map<GeluTanh>("gelu", y, x) : map<GeluErf>("gelu", y, x);
}

void gpu::gelu_backward(const Tensor& x, const Tensor& dy, bool approximate, Tensor& dx) {
  approximate ? map<GeluTanhBackward>("gelu", dx, x, dy) : map<GeluErfBackward>("gelu", dx, x, dy);
}

}  // namespace ebb
