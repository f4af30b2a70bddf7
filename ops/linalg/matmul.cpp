#include "ebb/ops/linalg/matmul.h"

#include "ebb/ops/linalg/gemm.h"

namespace ebb {
namespace {

// The product of matrices that fit, written into y of the given shape.
Tensor product(const Tensor& a, const Tensor& b, MatmulOptions o, const Shape& shape) {
  const int r = a.rank();
  const GemmSize size{
      shape.product(0, r - 2), shape[r - 2], shape[r - 1], a.shape()[o.transpose_a ? r - 2 : r - 1],
      o.transpose_a,           o.transpose_b};
  Tensor y = empty(shape, a.options());
  run_as_is<cpu::gemm, gpu::gemm>(a.device(), "matmul", size, a, b, Tensor(), Tensor(), y);
  return y;
}

void check(const Tensor& a, const Tensor& b, MatmulOptions o) {
  require_floating("matmul", "a", a);
  require_alike("matmul", "a", a, "b", b);
  const int r = a.rank();
  require(r >= 2 && b.rank() == r, Kind::shape, "matmul", "ranks do not fit",
          text(a.shape(), " and ", b.shape()), "two matrices, or two equal batches of them");
  for (int d = 0; d < r - 2; ++d)
    require(a.shape()[d] == b.shape()[d], Kind::shape, "matmul", text("batch dimension ", d),
            text(a.shape(), " and ", b.shape()), "equal batch dimensions");
  const std::int64_t ka = a.shape()[o.transpose_a ? r - 2 : r - 1];
  const std::int64_t kb = b.shape()[o.transpose_b ? r - 1 : r - 2];
  require(ka == kb, Kind::shape, "matmul",
          text("inner dimensions of ", a.shape(), " and ", b.shape(), " differ"),
          text(ka, " and ", kb), "equal");
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions o) {
  check(a, b, o);
  const int r = a.rank();
  const Shape shape = a.shape()
                          .with(r - 2, a.shape()[o.transpose_a ? r - 1 : r - 2])
                          .with(r - 1, b.shape()[o.transpose_b ? r - 2 : r - 1]);
  const bool needs_a = a.requires_grad();
  const bool needs_b = b.requires_grad();
  return record("matmul", product(a, b, o, shape), {a, b},
                [o, needs_a, needs_b, a = Saved(a), b = Saved(b)](const Tensor& dy) -> Gradients {
                  Tensor da, db;
                  if (needs_a)
                    da = o.transpose_a ? product(b, dy, {o.transpose_b, true}, a->shape())
                                       : product(dy, b, {false, !o.transpose_b}, a->shape());
                  if (needs_b)
                    db = o.transpose_b ? product(dy, a, {true, o.transpose_a}, b->shape())
                                       : product(a, dy, {!o.transpose_a, false}, b->shape());
                  return {da, db};
                });
}

}  // namespace ebb
