// y = op(a) · op(b), op(x) = x or xᵀ by flag                 shapes: [m,k] · [k,n] → [m,n]
//
// Or batched: [batch…,m,k] · [batch…,k,n] → [batch…,m,n] with equal batch dimensions. transpose_a
// says that a is [k,m], transpose_b that b is [n,k]; nothing is copied for them, nor for gradients:
// da = dy · op(b)ᵀ, db = op(a)ᵀ · dy.
//
// Errors: `shape` below rank 2, for unequal ranks, batch or inner dimensions; `dtype`, `device`.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct MatmulOptions {
  bool transpose_a = false;
  bool transpose_b = false;
};

Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options = {});

}  // namespace ebb
