#include <iterator>

#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/elementwise/normal_tail.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::exponential;
using gpu::exponential_of_2;
using gpu::reciprocal;

// (1 + tanh(u)) / 2 = 1 / (1 + e⁻²ᵘ): one exponential, and no cancellation where it is small.
constexpr double twice_c = 1.59576912160573071176;  // 2 √(2/π)

template <class T>
struct GeluTanh {
  using C = Compute<T>;
  static constexpr int packs = std::is_same_v<T, bf16> ? 2 : 1;
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

// Beyond this, to both sides, Φ is 0 or 1 and φ is 0 in f32 and f64.
template <class C>
__device__ C clamped(C x) {
  return fmin(fmax(x, C(-40)), C(40));
}

// e^(−x²/2); in f64 with what x² is short of after rounding.
template <class T, class C>
__device__ C bell(C x) {
  if constexpr (sizeof(C) == 4) return exponential_of_2<T>(x * x * -0.72134752f);  // log₂(e) / 2
  x = clamped(x);
  const C square = x * x;
  return exp(square * C(-0.5)) * (1 - fma(x, x, -square) * C(0.5));
}

// Φ(−|x|), the smaller one.
template <class T, class C>
__device__ C normal_tail(C x, C bell) {
  constexpr NormalTail<T> of;
  const C t = reciprocal(fma(fabs(x), of.slope, C(1)));
  C q = of.q[0];
#pragma unroll
  for (int i = 1; i < static_cast<int>(std::size(of.q)); ++i) q = fma(q, t + t - 1, of.q[i]);
  return q * t * bell;
}

template <class T>
struct GeluErf {
  using C = Compute<T>;
  static constexpr int packs = std::is_same_v<T, bf16> ? 2 : 1;
  __device__ C operator()(C x) const {
    const C size = fabs(x);
    return fma(-fmin(size, C(40)), normal_tail<T>(x, bell<T>(x)), fmax(x, C(0)));
  }
};

template <class T>
struct GeluErfBackward {
  using C = Compute<T>;
  __device__ C operator()(C x, C dy) const {
    const C e = bell<T>(x), tail = normal_tail<T>(x, e);
    const C cdf = x < 0 ? tail : 1 - tail;
    return dy * fma(clamped(x) * e, C(0.39894228040143267794), cdf);  // 1/√(2π)
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
