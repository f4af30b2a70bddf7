// y[…,o] = Σᵢ x[…,i] · w[o,i] + b[o]                x [...,in], w [out,in], b [out] → y [...,out]
//
// dx = dy · w,  dw = dyᵀ · x,  db = Σ over rows of dy, in blocks of a fixed order.
// Errors: `shape` for x of rank 0 or 1, w that is not [out,in], b that is not [out]; `dtype`,
// `device`.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b = {});

namespace cpu {
Map1 linear_bias_gradient;  // dy [rows,out] → db [out]
}
namespace gpu {
Map1 linear_bias_gradient;
}

}  // namespace ebb
