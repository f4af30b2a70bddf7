// mish(x) = x · tanh(ln(1 + eˣ)) = x · w / (w + 2), w = eˣ (eˣ + 2)      shape: any → same
// mish'(x) = (w + 4 x eˣ (eˣ + 1) / (w + 2)) / (w + 2)
//
// One exponential and one reciprocal, forward and backward. From x = 20 on, the quotient is 1 in
// f32 and f64, and e²⁰ is as good as any larger number. Journal day 28.
//
// Errors: `dtype` unless x is floating. Source: Misra 2019, arXiv:1908.08681.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor mish(const Tensor& x);

namespace cpu {
Map1 mish;
Map2 mish_backward;  // x, dy → dx
}  // namespace cpu
namespace gpu {
Map1 mish;
Map2 mish_backward;
}  // namespace gpu

}  // namespace ebb
