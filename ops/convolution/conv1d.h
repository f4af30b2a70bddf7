// y[n,k,p] = b[k] + Σ over c,r of x[n, c, p·stride + r·dilation − padding] · w[k,c,r]
//
// x [N,C,L], w [K, C/groups, R], b [K] or undefined → y [N,K,P],
// P = ⌊(L + 2·padding − dilation·(R−1) − 1) / stride⌋ + 1. It is conv2d on images of height 1:
// groups, gradients and errors as there. Journal day 10.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct Conv1dOptions {
  std::int64_t stride = 1;
  std::int64_t padding = 0;
  std::int64_t dilation = 1;
  std::int64_t groups = 1;
};

Tensor conv1d(const Tensor& x, const Tensor& w, const Tensor& b = {}, Conv1dOptions options = {});

}  // namespace ebb
