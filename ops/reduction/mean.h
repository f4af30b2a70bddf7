// mean(x) = Σ x / n over the given dimensions, all when none are given
// dx = dy / n, repeated along them
//
// Shape, accumulation and errors as sum. The mean of nothing is NaN, and a sum that
// overflows x's type makes it infinite.
#pragma once
#include "ebb/ops/reduction/sum.h"

namespace ebb {

Tensor mean(const Tensor& x, const ReduceOptions& options = {});

}  // namespace ebb
