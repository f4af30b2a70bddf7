// inner_product(a, b) = Σ aᵢ bᵢ                                             shapes: [n], [n] → []
// da = b dy    db = a dy
//
// Products and sum are f64. On the CPU products, exact ones of bf16 and rounded ones of f32, add up
// by fours in f32 first, unless that overflows: an error of some 2⁻²⁴ Σ|aᵢbᵢ|. The product of
// nothing is 0. Journal day 17. Errors:
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
