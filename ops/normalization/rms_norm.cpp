#include "ebb/ops/normalization/rms_norm.h"

#include "ebb/ops/normalization/norm_rows.h"

namespace ebb {

Tensor rms_norm(const Tensor& x, const Tensor& weight, RmsNormOptions options) {
  const NormRows rows = norm_rows("rms_norm", x, options.normalized_shape, options.eps);
  check_affine("rms_norm", "weight", weight, x, options.normalized_shape);
  return normalize_rows("rms_norm", x, weight, {}, rows, options.eps, false);
}

}  // namespace ebb
