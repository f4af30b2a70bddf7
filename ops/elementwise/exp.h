// exp(x) = eˣ                                                            shape: any → same
// exp'(x) = eˣ
//
// Infinity above 88.7 (f32), denormals and then 0 below −87.3.
//
// Errors: `dtype` unless x is floating.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor exp(const Tensor& x);

namespace cpu {
Map1 exp_forward;
Map2 exp_backward;  // y, dy → dx
}  // namespace cpu
namespace gpu {
Map1 exp_forward;
Map2 exp_backward;
}  // namespace gpu

}  // namespace ebb
