#include "ebb/nn/multi_tensor.cuh"
#include "ebb/nn/sgd.h"

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

void gpu::sgd(const SGDStep& step, const Tensors& p, const Tensors& g, const Tensors& m,
              const std::vector<double>& decay) {
  visit<float, double>(p.front().dtype(), "sgd", [&](auto zero) {
    using T = decltype(zero);
    const Sgd<T> f{static_cast<T>(step.rate), static_cast<T>(step.momentum), step.nesterov};
    multi_map<T, 3>("sgd", f, {p, g, m}, decay);
  });
}

}  // namespace ebb::nn
