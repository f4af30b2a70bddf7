#include "ebb/nn/sgd.h"
#include "ebb/nn/updates.cuh"

namespace ebb::nn {
namespace {

// Fused by hand, as in adamw.cu.
template <class T>
struct Sgd {
  const StepNumbers* numbers;
  T momentum;
  bool nesterov;
  T rate = 0;

  __device__ Sgd loaded() const {
    return {numbers, momentum, nesterov, static_cast<T>(numbers->rate)};
  }
  __device__ void operator()(double decay, T& p, const T& gradient, T& m) const {
    const T g = fma(static_cast<T>(decay), p, gradient);
    m = fma(momentum, m, g);
    p = fma(-rate, nesterov ? fma(momentum, m, g) : m, p);
  }
};

}  // namespace

void gpu::sgd(const SGDOptions& o, const Tensor& numbers, const Batch& batch) {
  const auto* const step = static_cast<const StepNumbers*>(numbers.raw());
  for_each_update<1>("sgd", batch, [&](auto zero) {
    using T = decltype(zero);
    return Sgd<T>{step, static_cast<T>(o.momentum), o.nesterov};
  });
}

}  // namespace ebb::nn
