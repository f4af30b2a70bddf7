// Stochastic gradient descent with momentum, and with the defaults of PyTorch's:
//   g ← g + decay · p        m ← momentum · m + g        p ← p − rate · m
// with nesterov: p ← p − rate · (g + momentum · m). One kernel for all parameters.
// Errors: `value` for momentum outside [0, 1), and for nesterov without momentum.
#pragma once
#include "ebb/nn/optimizer.h"

namespace ebb::nn {

struct SGDOptions {
  double momentum = 0;
  double weight_decay = 0;
  bool nesterov = false;
};

class SGD : public Optimizer {
 public:
  SGD(const Tensors& parameters, SGDOptions options = {});
  SGD(const std::vector<Group>& groups, SGDOptions options);  // each group has its own decay

 private:
  void update(const Batch& batch, const Tensor& numbers) override;
  SGDOptions options_;
};

using SGDUpdate = void(const SGDOptions& options, const Tensor& numbers, const Batch& batch);
namespace cpu {
SGDUpdate sgd;
}
namespace gpu {
SGDUpdate sgd;
}

}  // namespace ebb::nn
