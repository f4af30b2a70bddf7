// mse_loss(x, t) = Σ (x − t)² / n for the mean, Σ (x − t)² for the sum, (x − t)² for none
// dx = 2 (x − t) dy, over n for the mean;  dt = −dx
//
// Shapes: x and t equal → one value, or theirs for none. The mean of nothing is NaN.
// Errors: `dtype`, `device`, `shape` unless x and t are alike: nothing is broadcast.
#pragma once
#include "ebb/ops/reduction/loss.h"

namespace ebb {

struct MseLossOptions {
  Reduction reduction = Reduction::mean;
};

Tensor mse_loss(const Tensor& x, const Tensor& target, MseLossOptions options = {});

// y = factor · Σ (x − t)², or each term when y has x's shape (each).
using MseLoss = void(const Tensor& x, const Tensor& target, double factor, bool each, Tensor& y);
// dx = factor · (x − t) · dy, where dy has x's shape (each) or one value
using MseLossBackward = void(const Tensor& x, const Tensor& target, const Tensor& dy, double factor,
                             bool each, Tensor& dx);
namespace cpu {
MseLoss mse_loss;
MseLossBackward mse_loss_backward;
}  // namespace cpu
namespace gpu {
MseLoss mse_loss;
MseLossBackward mse_loss_backward;
}  // namespace gpu

}  // namespace ebb
