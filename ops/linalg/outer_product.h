// outer_product(a, b) = a bᵀ                                         shapes: [m], [n] → [m, n]
// da = G b    db = Gᵀ a    with G = dy
//
// Errors: `shape` unless a and b have one dimension, `dtype`, `device`, `limit` for too large an
// output. Journal day 18.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor outer_product(const Tensor& a, const Tensor& b);

// da or db may be undefined: not asked for.
using OuterProductBackward = void(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                  Tensor& db);
namespace cpu {
Map2 outer_product;
OuterProductBackward outer_product_backward;
}  // namespace cpu
namespace gpu {
Map2 outer_product;
OuterProductBackward outer_product_backward;
}  // namespace gpu

}  // namespace ebb
