#include "ebb/nn/sgd.h"
#include "ebb/nn/updates.cuh"

namespace ebb::nn {
namespace {

template <class T>
struct Sgd {
  T rate;
  T momentum;
  bool nesterov;
  __device__ void operator()(double decay, T& p, const T& gradient, T& m) const {
    const T g = gradient + static_cast<T>(decay) * p;
    m = momentum * m + g;
    p -= rate * (nesterov ? g + momentum * m : m);
  }
};

}  // namespace

void gpu::sgd(const SGDStep& step, const Tensors& p, const Tensors& g, const Tensors& masters,
              const Tensors& m, const std::vector<double>& decay) {
  for_each_update<1>("sgd", p, g, masters, {m}, decay, [&](auto zero) {
    using T = decltype(zero);
    return Sgd<T>{static_cast<T>(step.rate), static_cast<T>(step.momentum), step.nesterov};
  });
}

}  // namespace ebb::nn
