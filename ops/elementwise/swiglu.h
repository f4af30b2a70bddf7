// swiglu(gate, up) = silu(gate) · up, silu(g) = g · σ(g)                 shapes: equal → same
// dgate = dy · up · σ(g) · (1 + g · (1 − σ(g))), dup = dy · silu(g)
//
// Journal day 2.
// Errors: `dtype` unless both are floating and alike, `device`, `shape` unless equal.
// Source: Shazeer 2020, arXiv:2002.05202.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor swiglu(const Tensor& gate, const Tensor& up);

using SwigluBackward = void(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate,
                            Tensor& dup);
namespace cpu {
Map2 swiglu;
SwigluBackward swiglu_backward;
}  // namespace cpu
namespace gpu {
Map2 swiglu;
SwigluBackward swiglu_backward;
}  // namespace gpu

}  // namespace ebb
