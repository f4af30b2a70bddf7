// tanh(x) = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ), never computed so: that is ∞/∞ far from 0
// tanh'(x) = 1 − y², y = tanh(x)                                         shape: any → same
//
// Journal day 4.
//
// Errors: `dtype` unless x is floating.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor tanh(const Tensor& x);

namespace cpu {
Map1 tanh;
Map2 tanh_backward;  // y, dy → dx
}  // namespace cpu
namespace gpu {
Map1 tanh;
Map2 tanh_backward;
}  // namespace gpu

}  // namespace ebb
