// l2_norm(x) = √Σ x² over the given dimensions, all when none are given
// dx = x / y · dy, and 0 where y is 0
//
// Shape: x any → without the dimensions, or with extent 1 there (keepdim). The norm of nothing is
// 0. Squares are f64, so that of f32 they neither overflow nor vanish.
// Dimensions that do not lie side by side are taken run by run: a norm of norms, in bf16 rounded
// after each.
// Errors: `dtype` unless x is floating, `index` for a dimension that x lacks, `value` for one given
// twice. Journal day 16.
#pragma once
#include "ebb/ops/reduction/axes.h"

namespace ebb {

Tensor l2_norm(const Tensor& x, const ReduceOptions& options = {});

// y[o, i] = √Σₖ x[o, k, i]²
using NormAlong = void(const Tensor& x, const View& view, Tensor& y);
// dx[o, k, i] = x[o, k, i] / y[o, i] · dy[o, i]
using NormAlongBackward = void(const Tensor& x, const Tensor& y, const Tensor& dy, const View& view,
                               Tensor& dx);
namespace cpu {
NormAlong l2_norm;
NormAlongBackward l2_norm_backward;
}  // namespace cpu
namespace gpu {
NormAlong l2_norm;
NormAlongBackward l2_norm_backward;
}  // namespace gpu

}  // namespace ebb
