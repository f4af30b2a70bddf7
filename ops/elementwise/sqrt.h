// sqrt(x) = √x, correctly rounded; NaN below 0                           shape: any → same
// sqrt'(x) = 1 / (2 √x), infinity at 0
//
// Errors: `dtype` unless x is floating.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor sqrt(const Tensor& x);

namespace cpu {
Map1 sqrt;
Map2 sqrt_backward;  // y, dy → dx
}  // namespace cpu
namespace gpu {
Map1 sqrt;
Map2 sqrt_backward;
}  // namespace gpu

}  // namespace ebb
