// l2_normalize(x) = x / d, d = max(‖x‖₂, eps), along one dimension          shape: any → same
// dx = (dy − y · Σ y dy) / d, or dy / d where ‖x‖₂ ≤ eps
//
// Squares are f64, so that of f32 they neither overflow nor vanish.
// Errors: `dtype` unless x is floating, `index` for a dimension that x lacks, `value` unless eps is
// positive. Journal day 16.
#pragma once
#include "ebb/ops/reduction/axes.h"

namespace ebb {

struct L2NormalizeOptions {
  std::int64_t dim = 1;
  double eps = 1e-12;
};

Tensor l2_normalize(const Tensor& x, L2NormalizeOptions options = {});

// scale[o, i] = 1 / d, with a minus sign where d is eps; f32, or f64 for f64.
using L2Normalize = void(const Tensor& x, const View& view, double eps, Tensor& y, Tensor& scale);
using L2NormalizeBackward = void(const Tensor& y, const Tensor& dy, const View& view,
                                 const Tensor& scale, Tensor& dx);
namespace cpu {
L2Normalize l2_normalize;
L2NormalizeBackward l2_normalize_backward;
}  // namespace cpu
namespace gpu {
L2Normalize l2_normalize;
L2NormalizeBackward l2_normalize_backward;
}  // namespace gpu

}  // namespace ebb
