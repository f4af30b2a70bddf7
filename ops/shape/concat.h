// The tensors xs one after another along `dim`          shapes: [a,k₁,b] [a,k₂,b] … → [a,Σkᵢ,b]
//
// Any dtype; the gradient of each is its slice of dy.
// Errors: `value` for no tensors; `shape` for rank 0, unequal ranks and unequal other extents;
// `index` for dim; `dtype`, `device`.
#pragma once
#include <span>

#include "ebb/ops/ops.h"

namespace ebb {

Tensor concat(std::span<const Tensor> xs, std::int64_t dim = 0);
inline Tensor concat(std::initializer_list<Tensor> xs, std::int64_t dim = 0) {
  return concat(std::span(xs.begin(), xs.size()), dim);
}

}  // namespace ebb
