// sigmoid(x) = 1 / (1 + e⁻ˣ)                                             shape: any → same
// sigmoid'(x) = y · (1 − y), y = sigmoid(x)
//
// Errors: `dtype` unless x is floating.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor sigmoid(const Tensor& x);

namespace cpu {
Map1 sigmoid;
Map2 sigmoid_backward;  // y, dy → dx
}  // namespace cpu
namespace gpu {
Map1 sigmoid;
Map2 sigmoid_backward;
}  // namespace gpu

}  // namespace ebb
