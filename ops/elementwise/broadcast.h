// Internal: not in <ebb/ebb.h>, not installed.
// Broadcasting: which element of an operand meets which of the result, and the adjoint of it, a
// sum. For ops of two operands and for biases.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

// Operands a and b against the result, adjacent dimensions merged where both operands go on in the
// same way. A stride counts elements; it is 0 along a dimension that repeats the operand.
struct Layout {
  int rank = 0;
  std::int64_t dims[Shape::max_rank] = {};
  std::int64_t a[Shape::max_rank] = {};
  std::int64_t b[Shape::max_rank] = {};

  Layout(const Shape& y, const Shape& a_shape, const Shape& b_shape);
  bool equal() const { return rank == 0 || (rank == 1 && a[0] == 1 && b[0] == 1); }
  // Whether an operand of these strides has an element for each of the result, in its order.
  bool lies_like_y(const std::int64_t* strides) const;
};

// One operand lies as the result does, the other repeats: element i meets element
// (i / inner) % period. A number: period 1; a bias [C] on [N,C]: period C; on [N,C,H,W] as [C,1,1]:
// inner H·W.
struct Periodic {
  bool found = false;
  bool first = false;  // a repeats, not b
  std::int64_t period = 1;
  std::int64_t inner = 1;

  explicit Periodic(const Layout& layout);
};

// Sums x over the dimensions along which a tensor of `shape` was broadcast to x's shape; x itself
// where there are none. In a fixed order, in blocks. Not recorded.
Tensor sum_to(const Tensor& x, const Shape& shape);

}  // namespace ebb
