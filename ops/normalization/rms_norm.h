// rms_norm(x) = x / √(mean x² + eps) · weight over the trailing dimensions
// Gradients: norm_rows.h.
//
// Shapes: x any, weight those trailing dimensions → x's. A row with NaN or an infinity in it has
// NaN there, and no other row does.
// Errors: `shape` (x is a scalar, normalized_shape is not how x's shape ends, weight), `dtype`,
// `device`, `value` for a negative or NaN eps.
// Source: Zhang & Sennrich 2019, arXiv:1910.07467. Journal day 15.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct RmsNormOptions {
  Shape normalized_shape = {};  // none: the last dimension
  double eps = 1e-6;
};

Tensor rms_norm(const Tensor& x, const Tensor& weight = {}, RmsNormOptions options = {});

}  // namespace ebb
