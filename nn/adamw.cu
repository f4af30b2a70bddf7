#include "ebb/nn/adamw.h"

#include <cmath>

#include "ebb/nn/updates.cuh"

namespace ebb::nn {
namespace {

template <class T>
struct Adam {
  double rate;
  T beta1, beta2, rest1, rest2, size, root, eps;
  __device__ void operator()(double decay, T& p, const T& g, T& m, T& v) const {
    m = beta1 * m + rest1 * g;
    v = beta2 * v + (rest2 * g) * g;
    const T kept = static_cast<T>(1 - rate * decay);
    p = kept * p - size * m / (sqrt(v) * root + eps);
  }
};

}  // namespace

void gpu::adamw(const AdamWStep& s, const Tensors& p, const Tensors& g, const Tensors& masters,
                const Tensors& m, const Tensors& v, const std::vector<double>& decay) {
  for_each_update<2>("adamw", p, g, masters, {m, v}, decay, [&](auto zero) {
    using T = decltype(zero);
    const auto number = [](double x) { return static_cast<T>(x); };
    return Adam<T>{s.rate,
                   number(s.beta1),
                   number(s.beta2),
                   number(1 - s.beta1),
                   number(1 - s.beta2),
                   number(s.rate / s.correction1),
                   number(1 / std::sqrt(s.correction2)),
                   number(s.eps)};
  });
}

}  // namespace ebb::nn
