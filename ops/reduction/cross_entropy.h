// cross_entropy(x, t)ᵣ = −Σ_c qᵣ_c log softmax(xᵣ)_c, q = (1 − ε) w_t [c = t] + ε w_c / C
// mean: Σᵣ / Σᵣ w_t   sum: Σᵣ   none: each row                        shapes: x [N,C], t [N] i32
// dxᵣ_c = g · ((1 − ε) w_t (p_c − [c = t]) + ε/C · (p_c Σw − w_c)), p = softmax(xᵣ)
//
// w is the weight of each class, [C], or 1; ε is label_smoothing. Rows with target ignore_index
// count nowhere: their loss and gradient are 0, and the mean over no rows is NaN.
//
// Targets are checked before anything is computed: error `index`, naming the first bad row. On the
// GPU that waits for the device. A training loop that has checked its data once may set
// check_targets = false: then nothing waits (and a CUDA graph can be captured), and the loss and
// gradient of a row whose target is no class are NaN; nothing outside x is read in any case.
//
// Errors: `dtype`, `shape`, `device`, `index` (above), `value` unless ε is in [0,1).
// Source: PyTorch's torch.nn.functional.cross_entropy, whose conventions these are.
#pragma once
#include "ebb/ops/reduction/loss.h"

namespace ebb {

struct CrossEntropyOptions {
  Reduction reduction = Reduction::mean;
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;
  bool check_targets = true;
};

Tensor cross_entropy(const Tensor& logits, const Tensor& target, const Tensor& weight = {},
                     const CrossEntropyOptions& options = {});

// The same without class weights.
Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options);

// For losses over classes: errors unless target is [n], i32 and there, and, if its values are to be
// checked, each is a class or ignore_index.
void check_targets(std::string_view op, const Tensor& target, std::int64_t n, std::int64_t classes,
                   Device device, std::int64_t ignore_index, bool values);

// What backward needs beside the logits. The log of Σ exp is kept in two parts, so that it is not
// rounded at the size of the maximum.
struct CrossEntropyState {
  Tensor max;         // [N] of each row
  Tensor log_sum;     // [N] log Σ exp(x − max)
  Tensor divisor;     // [] Σ w_t for the mean, else 1
  Tensor weight_sum;  // [] Σ w; undefined unless it is needed
};

// found[0] = the first row whose target is neither a class nor ignore_index, N if none;
// found[1] = that target. f64 [2].
using FindBadTarget = void(const Tensor& target, std::int64_t classes, std::int64_t ignore_index,
                           Tensor& found);
using CrossEntropy = void(const Tensor& logits, const Tensor& target, const Tensor& weight,
                          const CrossEntropyOptions& options, CrossEntropyState& state, Tensor& y);
using CrossEntropyBackward = void(const Tensor& logits, const Tensor& target, const Tensor& weight,
                                  const CrossEntropyOptions& options,
                                  const CrossEntropyState& state, const Tensor& dy, Tensor& dx);
namespace cpu {
FindBadTarget find_bad_target;
CrossEntropy cross_entropy;
CrossEntropyBackward cross_entropy_backward;
}  // namespace cpu
namespace gpu {
FindBadTarget find_bad_target;
CrossEntropy cross_entropy;
CrossEntropyBackward cross_entropy_backward;
}  // namespace gpu

}  // namespace ebb
