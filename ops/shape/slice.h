// y = x[…, start:end, …] along `dim`                          shapes: [a,k,b] → [a,end−start,b]
//
// Python's rules: negative bounds count from the end, bounds beyond either end are moved to it, and
// an end before the start gives nothing. Any dtype; a copy. The gradient outside the slice is 0.
// Errors: `shape` for rank 0, `index` for dim.
#pragma once
#include <limits>

#include "ebb/ops/ops.h"

namespace ebb {

inline constexpr std::int64_t slice_to_end = std::numeric_limits<std::int64_t>::max();

Tensor slice(const Tensor& x, std::int64_t dim, std::int64_t start,
             std::int64_t end = slice_to_end);

}  // namespace ebb
