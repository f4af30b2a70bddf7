#include "ebb/nn/adamw.h"

#include "ebb/nn/updates.cuh"

namespace ebb::nn {
namespace {

// Products are fused where it says so: left to the compiler, a master and a weight in f32 would not
// agree to the last bit.
template <class T>
struct Adam {
  const StepNumbers* numbers;
  T beta1, beta2, rest1, rest2, eps;
  double rate = 0;
  T size = 0, root = 0;

  __device__ Adam loaded() const {
    const StepNumbers s = *numbers;
    return {numbers,
            beta1,
            beta2,
            rest1,
            rest2,
            eps,
            s.rate,
            static_cast<T>(s.size),
            static_cast<T>(s.root)};
  }
  __device__ void operator()(double decay, T& p, const T& g, T& m, T& v) const {
    m = fma(beta1, m, rest1 * g);
    v = fma(beta2, v, (rest2 * g) * g);
    const T kept = static_cast<T>(fma(-rate, decay, 1.0));
    p = fma(kept, p, -(size * m / fma(sqrt(v), root, eps)));
  }
};

}  // namespace

void gpu::adamw(const AdamWOptions& o, const Tensor& numbers, const Batch& batch) {
  const auto* const step = static_cast<const StepNumbers*>(numbers.raw());
  for_each_update<2>("adamw", batch, [&](auto zero) {
    using T = decltype(zero);
    const auto number = [](double x) { return static_cast<T>(x); };
    return Adam<T>{
        step,         number(o.beta1), number(o.beta2), number(1 - o.beta1), number(1 - o.beta2),
        number(o.eps)};
  });
}

}  // namespace ebb::nn
