// inner_product(a, b) = Σ aᵢ bᵢ                                             shapes: [n], [n] → []
// da = b dy    db = a dy
//
// Products and sum are f64; on the CPU those of bf16 are f32 first, in which its products are
// exact, by fours, unless that overflows. The product of nothing is 0. Journal day 17. Errors:
// `shape` unless a and b have one dimension and one length, `dtype`, `device`.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

Tensor inner_product(const Tensor& a, const Tensor& b);

// da or db may be undefined: not asked for.
using InnerProductBackward = void(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                  Tensor& db);
namespace cpu {
Map2 inner_product;
InnerProductBackward inner_product_backward;
}  // namespace cpu
namespace gpu {
Map2 inner_product;
InnerProductBackward inner_product_backward;
}  // namespace gpu

}  // namespace ebb
