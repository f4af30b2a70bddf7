// layer_norm(x) = (x − μ) / √(σ² + eps) · weight + bias over the trailing dimensions
// Gradients: norm_rows.h.
//
// Shapes: x any, weight and bias those trailing dimensions → x's. σ² is Σ (x − μ)² / n, of
// differences from the mean. A row with NaN or an infinity in it is NaN, and no other row is.
// Errors: `shape` (x is a scalar, normalized_shape is not how x's shape ends, weight, bias),
// `dtype`, `device`, `value` for a negative or NaN eps.
// Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450. Journal days 6, 24 and 26.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct LayerNormOptions {
  Shape normalized_shape = {};  // none: the last dimension
  double eps = 1e-5;
};

Tensor layer_norm(const Tensor& x, const Tensor& weight = {}, const Tensor& bias = {},
                  LayerNormOptions options = {});

}  // namespace ebb
