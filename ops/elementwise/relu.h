// relu(x) = max(x, 0), NaN stays NaN                                     shape: any → same
// relu'(x) = 1 where x > 0, 0 elsewhere, also at 0
//
// Errors: `dtype` unless x is floating. Source: Nair and Hinton 2010.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor relu(const Tensor& x);

namespace cpu {
Map1 relu;
Map2 relu_backward;  // y, dy → dx
}  // namespace cpu
namespace gpu {
Map1 relu;
Map2 relu_backward;
}  // namespace gpu

}  // namespace ebb
