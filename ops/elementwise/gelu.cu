#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::reciprocal;

// (1 + tanh(u)) / 2 = 1 / (1 + e⁻²ᵘ): one exponential, and no cancellation where it is small.
constexpr double twice_c = 1.59576912160573071176;  // 2 √(2/π)

struct GeluTanh {
  template <class T>
  __device__ T operator()(T x) const {
    const T twice_u = T(twice_c) * x * (1 + T(0.044715) * x * x);
    return x * reciprocal(1 + exp(-twice_u));
  }
};

// With s = 1 / (1 + e⁻²ᵘ): s + x s (1 − s) (2u)'. Beyond ±25, s is 0 or 1 in f32 and f64.
struct GeluTanhBackward {
  template <class T>
  __device__ T operator()(T x, T dy) const {
    const T b = x > 25 ? T(25) : x < -25 ? T(-25) : x;
    const T s = reciprocal(1 + exp(-T(twice_c) * b * (1 + T(0.044715) * b * b)));
    const T slope = T(twice_c) * (1 + T(3 * 0.044715) * b * b);
    return dy * (s + b * s * (1 - s) * slope);
  }
};

struct GeluErf {
  template <class T>
  __device__ T operator()(T x) const {
    return x * (erfc(x * T(-M_SQRT1_2)) * T(0.5));
  }
};

struct GeluErfBackward {
  template <class T>
  __device__ T operator()(T x, T dy) const {
    const T density = exp(-x * x * T(0.5)) * T(0.39894228040143267794);
    return dy * (erfc(x * T(-M_SQRT1_2)) * T(0.5) + x * density);
  }
};

template <class Formula>
void forward(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "gelu", [&](auto zero) {
    using T = decltype(zero);
    gpu::map<T>("gelu", Formula{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

template <class Formula>
void backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), "gelu", [&](auto zero) {
    using T = decltype(zero);
    gpu::map<T>("gelu", Formula{}, x.numel(), dx.data<T>(), x.data<T>(), dy.data<T>());
  });
}

}  // namespace

void gpu::gelu(const Tensor& x, bool approximate, Tensor& y) {
  approximate ? forward<GeluTanh>(x, y) : forward<GeluErf>(x, y);
}

void gpu::gelu_backward(const Tensor& x, const Tensor& dy, bool approximate, Tensor& dx) {
  approximate ? backward<GeluTanhBackward>(x, dy, dx) : backward<GeluErfBackward>(x, dy, dx);
}

}  // namespace ebb
