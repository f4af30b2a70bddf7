#include "ebb/ops/normalization/layer_norm.h"

#include "ebb/ops/normalization/norm_rows.h"

namespace ebb {

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                  LayerNormOptions options) {
  const NormRows rows = norm_rows("layer_norm", x, options.normalized_shape, options.eps);
  check_affine("layer_norm", "weight", weight, x, options.normalized_shape);
  check_affine("layer_norm", "bias", bias, x, options.normalized_shape);
  return normalize_rows("layer_norm", x, weight, bias, rows, options.eps, true);
}

}  // namespace ebb
