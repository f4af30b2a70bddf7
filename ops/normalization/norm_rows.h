// Internal: not in <ebb/ebb.h>, not installed.
// What layer_norm and rms_norm share: the tensor seen as rows of its trailing dimensions, and
//
//   x̂ = (x − μ) · r    y = w x̂ + b    r = 1 / √(mean of (x − μ)² + eps)
//   dx = r (g − mean g − x̂ · mean g x̂), g = dy w    dw = Σ dy x̂    db = Σ dy  over the rows
//
// with the means of each row. An undefined `mean` says that μ = 0 and that mean g does not enter:
// that is the RMS norm.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct NormRows {
  std::int64_t rows;
  std::int64_t cols;
};

// Checks x and eps and splits x before the trailing dimensions `normalized`, the last one when
// there are none; `normalized` becomes what was meant. Errors `dtype`, `shape`, `value`.
NormRows norm_rows(const char* op, const Tensor& x, Shape& normalized, double eps);

// Error `shape`, `device`, `dtype` unless v, a weight or bias, is undefined or fits.
void check_affine(const char* op, const char* name, const Tensor& v, const Tensor& x,
                  const Shape& normalized);

// The op: weight and bias may be undefined.
Tensor normalize_rows(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const NormRows& rows, double eps, bool centred);

// mean is f64, as f32 has too few digits where rows lie far from 0; rstd is f32, or f64 for f64.
using NormalizeRows = void(const char* op, const Tensor& x, const NormRows& rows,
                           const Tensor& weight, const Tensor& bias, double eps, Tensor& mean,
                           Tensor& rstd, Tensor& y);
// dweight and dbias may be undefined: not asked for.
using NormalizeRowsBackward = void(const char* op, const Tensor& x, const Tensor& dy,
                                   const NormRows& rows, const Tensor& weight, const Tensor& mean,
                                   const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias);
namespace cpu {
NormalizeRows normalize_rows;
NormalizeRowsBackward normalize_rows_backward;
}  // namespace cpu
namespace gpu {
NormalizeRows normalize_rows;
NormalizeRowsBackward normalize_rows_backward;
}  // namespace gpu

}  // namespace ebb
