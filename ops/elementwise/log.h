// log(x) = ln x; −∞ at ±0, NaN below                                     shape: any → same
// log'(x) = 1 / x
//
// Errors: `dtype` unless x is floating.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor log(const Tensor& x);

namespace cpu {
Map1 log;
Map2 log_backward;  // x, dy → dx
}  // namespace cpu
namespace gpu {
Map1 log;
Map2 log_backward;
}  // namespace gpu

}  // namespace ebb
