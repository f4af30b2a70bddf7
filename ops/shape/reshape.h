// y has the elements of x, in order, in another shape                     shapes: any → `shape`
//
// reshape and flatten share x's storage; nothing is copied. One extent of `shape` may be −1: what
// is left. flatten(x, d) makes one dimension of d and all after it.
//
// Errors: `shape` when the counts differ, for an extent below −1, and above rank 8; `value` for
// two −1, and for a −1 that could be anything because another extent is 0; `index` for start_dim.
#pragma once
#include <initializer_list>
#include <span>

#include "ebb/ops/ops.h"

namespace ebb {

Tensor reshape(const Tensor& x, std::span<const std::int64_t> shape);
inline Tensor reshape(const Tensor& x, std::initializer_list<std::int64_t> shape) {
  return reshape(x, std::span(shape.begin(), shape.size()));
}

Tensor flatten(const Tensor& x, std::int64_t start_dim = 0);

}  // namespace ebb
