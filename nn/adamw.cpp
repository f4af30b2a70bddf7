#include "ebb/nn/adamw.h"

#include <cmath>

#include "ebb/core/eigen.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"
#include "ebb/nn/multi_tensor.h"

namespace ebb::nn {

AdamW::AdamW(const Tensors& parameters, AdamWOptions options)
    : AdamW(std::vector<Group>{{parameters, options.weight_decay}}, options) {}

AdamW::AdamW(const std::vector<Group>& groups, AdamWOptions options)
    : Optimizer("adamw", groups, {"m", "v"}, {options.beta1, options.beta2}), options_(options) {
  const auto check_beta = [](const char* beta, double value) {
    require(0 <= value && value < 1, Kind::value, "adamw", text("bad ", beta), value, "[0, 1)");
  };
  check_beta("beta1", options.beta1);
  check_beta("beta2", options.beta2);
  require(std::isfinite(options.eps) && options.eps > 0, Kind::value, "adamw", "bad eps",
          options.eps, "a positive number");
}

void AdamW::update(const Batch& batch, const Tensor& numbers) {
  run<cpu::adamw, gpu::adamw>(numbers.device(), options_, numbers, batch);
}

// (1 − β₂) g · g, not (1 − β₂) · g²: the square alone overflows f32 from |g| = 2·10¹⁹ on.
void cpu::adamw(const AdamWOptions& o, const Tensor& numbers, const Batch& batch) {
  const StepNumbers s = *static_cast<const StepNumbers*>(numbers.raw());
  for_each_update("adamw", batch,
                  [&]<class T>(T* w, const T* dw, std::int64_t n, size_t t, std::int64_t begin) {
                    const auto size = static_cast<T>(s.size);
                    const auto root = static_cast<T>(s.root);
                    const auto gradient = ebb::cpu::array(dw, n);
                    auto weights = ebb::cpu::array(w, n);
                    auto mean = ebb::cpu::array(Tensor(batch.slots[0][t]).data<T>() + begin, n);
                    auto square = ebb::cpu::array(Tensor(batch.slots[1][t]).data<T>() + begin, n);
                    mean = static_cast<T>(o.beta1) * mean + static_cast<T>(1 - o.beta1) * gradient;
                    square = static_cast<T>(o.beta2) * square +
                             (static_cast<T>(1 - o.beta2) * gradient) * gradient;
                    weights = static_cast<T>(1 - s.rate * batch.decay[t]) * weights -
                              size * mean / (square.sqrt() * root + static_cast<T>(o.eps));
                  });
}

}  // namespace ebb::nn
