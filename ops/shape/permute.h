// y[i_dims[0], i_dims[1], …] = x[i_0, i_1, …]     shapes: y's dimension d is x's dimension dims[d]
//
// transpose(x, a, b) exchanges two dimensions. Any dtype; a copy. The gradient is permuted back.
// Errors: `value` unless dims names every dimension once; `index` outside [−rank, rank).
#pragma once
#include <array>
#include <span>

#include "ebb/ops/ops.h"

namespace ebb {

Tensor permute(const Tensor& x, std::span<const std::int64_t> dims);
inline Tensor permute(const Tensor& x, std::initializer_list<std::int64_t> dims) {
  return permute(x, std::span(dims.begin(), dims.size()));
}
Tensor transpose(const Tensor& x, std::int64_t dim0, std::int64_t dim1);

// Where each element of y comes from, with as few dimensions as say it: extents are y's, steps
// are x's distances, in elements, along them; the last one is the fastest in y. Extents of 1 are
// left out, and dimensions that stay neighbours are one.
struct Gather {
  int rank = 0;
  std::array<std::int64_t, Shape::max_rank> extents{};
  std::array<std::int64_t, Shape::max_rank> steps{};
};

using Permute = void(std::string_view op, const Gather& gather, const Tensor& x, Tensor& y);
namespace cpu {
Permute permute;
}
namespace gpu {
Permute permute;
}

}  // namespace ebb
