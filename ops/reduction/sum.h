// sum(x) = Σ x over the given dimensions, all when none are given
// dx = dy, repeated along them
//
// Shape: x any → without the dimensions, or with extent 1 there (keepdim). The sum of nothing is 0.
// Accumulated in double on both devices, in an order that only the shape decides.
// Errors: `dtype` unless x is floating, `index` for a dimension that x lacks, `value` for one given
// twice. Source: NumPy's sum. Journal day 20.
#pragma once
#include "ebb/ops/reduction/axes.h"

namespace ebb {

Tensor sum(const Tensor& x, const ReduceOptions& options = {});

// factor · sum over the passes of `axes`, and its gradient; what sum and mean are made of.
Tensor scaled_sum(const char* op, const Tensor& x, const Axes& axes, double factor);

// y[o, i] = factor · Σₖ x[o, k, i]; on the GPU y may be f32 when x is bf16, or the other way round.
using SumAlong = void(const Tensor& x, const View& view, double factor, Tensor& y);
// dx[o, k, i] = factor · dy[o, i]
using RepeatAlong = void(const Tensor& dy, const View& view, double factor, Tensor& dx);
namespace cpu {
SumAlong sum_along;
RepeatAlong repeat_along;
}  // namespace cpu
namespace gpu {
SumAlong sum_along;
RepeatAlong repeat_along;
}  // namespace gpu

}  // namespace ebb
