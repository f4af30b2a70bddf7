// max(x) = the largest element over the given dimensions, all when none are given
// dx = dy at the first largest element in row-major order, 0 elsewhere
//
// Shape: x any → without the dimensions, or with extent 1 there (keepdim). NaN wins, the first of
// several. What backward needs is the place of each result: one i32.
//
// Errors: `dtype` unless x is floating, `index` for a dimension that x lacks, `value` for one given
// twice and for one of extent 0: nothing has no largest element; `limit` when a gradient is wanted
// of 2³¹ elements or more that make one result. Source: PyTorch's torch.max(x, dim).
#pragma once
#include "ebb/ops/reduction/axes.h"

namespace ebb {

Tensor max(const Tensor& x, const ReduceOptions& options = {});

// y[o, i] = maxₖ x[o, k, i], and `index`, undefined when nobody will ask, that k, i32.
using MaxAlong = void(const Tensor& x, const View& view, Tensor& index, Tensor& y);
// dx[o, index[o, i], i] = dy[o, i]; dx is 0 beforehand.
using PlaceAlong = void(const Tensor& index, const Tensor& dy, const View& view, Tensor& dx);
namespace cpu {
MaxAlong max_along;
PlaceAlong place_along;
}  // namespace cpu
namespace gpu {
MaxAlong max_along;
PlaceAlong place_along;
}  // namespace gpu

}  // namespace ebb
