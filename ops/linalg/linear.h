// y[…,o] = Σᵢ x[…,i] · w[o,i] + b[o] + residual[…,o]
//                                    x [...,in], w [out,in], b [out], residual, y [...,out]
//
// b and residual may be left out. The residual is added to the sums before they are rounded.
// dx = dy · w,  dw = dyᵀ · x,  db = Σ over rows of dy, in blocks of a fixed order.
// Errors: `shape` for x of rank 0 or 1, w that is not [out,in], b that is not [out], a
// residual of another shape than y; `dtype`, `device`.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b = {}, const Tensor& residual = {});

}  // namespace ebb
