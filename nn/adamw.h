// Adam with decoupled weight decay, as PyTorch's, at step t = 1, 2, …:
//   m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        p ← (1 − rate · decay) p
//   p ← p − rate · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
// One kernel for all parameters. Errors: `value` for betas outside [0, 1) and eps <= 0.
// Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
#pragma once
#include "ebb/nn/optimizer.h"

namespace ebb::nn {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

class AdamW : public Optimizer {
 public:
  AdamW(const Tensors& parameters, AdamWOptions options = {});
  AdamW(const std::vector<Group>& groups, AdamWOptions options);  // each group has its own decay

 private:
  void update(const Batch& batch, const Tensor& numbers) override;
  AdamWOptions options_;
};

using AdamWUpdate = void(const AdamWOptions& options, const Tensor& numbers, const Batch& batch);
namespace cpu {
AdamWUpdate adamw;
}
namespace gpu {
AdamWUpdate adamw;
}

}  // namespace ebb::nn
