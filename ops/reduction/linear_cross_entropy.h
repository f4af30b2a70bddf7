// linear_cross_entropy(x, w, t) = cross_entropy(x · wᵀ, t)      x [N,D], w [C,D], t [N] i32 → []
//
// For vocabularies so large that the logits [N,C] would be the largest tensor of a model: they are
// read once, and overwritten by their gradient. Where they are more than may be held at a time,
// they are made for some rows after others, and dx and dw of each part at once: forward does the
// work of both directions, and backward only multiplies by dy. Else their gradient is kept,
// backward makes dx and dw of it, and a forward that none follows costs no more than the loss. dw
// is added up in f32 (f64 for f64), in the order of the rows.
//
// Rows with target ignore_index count nowhere; the mean over no rows is NaN. Targets are checked
// as cross_entropy checks them, and unchecked ones have the same effect.
//
// Errors: `dtype`, `shape`, `device`; `index` for a target that is no class; `value` unless the
// reduction is mean or sum.
// Source: the idea of Hsu et al. 2024, arXiv:2410.10989 (Liger kernels).
#pragma once
#include "ebb/ops/reduction/loss.h"

namespace ebb {

struct LinearCrossEntropyOptions {
  Reduction reduction = Reduction::mean;
  std::int64_t ignore_index = -100;
  bool check_targets = true;
  std::int64_t logits_at_a_time = std::int64_t{1} << 28;  // at most, if that is a row
};

Tensor linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& target,
                            const LinearCrossEntropyOptions& options = {});

// count[] = how many targets are not ignore_index.
using CountTargets = void(const Tensor& target, std::int64_t ignore_index, Tensor& count);
// The logits of rows `first` and on become the gradient of their loss / divisor; loss [N].
using LossAndGradient = void(const Tensor& target, std::int64_t first, std::int64_t ignore_index,
                             const Tensor& divisor, Tensor& logits, Tensor& loss);
// y = x · factor[], of x's dtype or a narrower one.
using Scale = void(const Tensor& x, const Tensor& factor, Tensor& y);
namespace cpu {
CountTargets count_targets;
LossAndGradient loss_and_gradient;
Scale scale;
}  // namespace cpu
namespace gpu {
CountTargets count_targets;
LossAndGradient loss_and_gradient;
Scale scale;
}  // namespace gpu

}  // namespace ebb
