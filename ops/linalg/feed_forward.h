// h = x · upᵀ + a,  y = gelu(h) · downᵀ + b + residual, gelu in its tanh form
//
// x [...,in], up [hidden,in], down [out,hidden], a [hidden], b [out], residual, y [...,out]
//
// The two layers between the attentions of a transformer, as one operation because gelu and its
// backward are then the last steps of the products before them:
// dh = (dy · down) ⊙ gelu'(h),  dx = dh · up,  dup = dhᵀ · x,  ddown = dyᵀ · gelu(h).
//
// Errors: `shape` for x of rank 0 or 1 and for other arguments that do not fit; `dtype`,
// `device`.
// Sources: Vaswani et al. 2017, arXiv:1706.03762; gelu: ops/elementwise/gelu.h.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct FeedForwardOptions {  // each may be left out
  Tensor up_bias = {}, down_bias = {}, residual = {};
};

Tensor feed_forward(const Tensor& x, const Tensor& up, const Tensor& down,
                    const FeedForwardOptions& options = {});

}  // namespace ebb
