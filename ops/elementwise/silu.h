// silu(x) = x · σ(x), σ(x) = 1 / (1 + e⁻ˣ)                               shape: any → same
// silu'(x) = σ(x) · (1 + x · (1 − σ(x)))
//
// Also called swish. Journal day 25.
// Errors: `dtype` unless x is floating. Source: Elfwing et al. 2017, arXiv:1702.03118.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor silu(const Tensor& x);

namespace cpu {
Map1 silu;
Map2 silu_backward;  // x, dy → dx
}  // namespace cpu
namespace gpu {
Map1 silu;
Map2 silu_backward;
}  // namespace gpu

}  // namespace ebb
