#include "ebb/ops/linalg/linear.h"

#include "ebb/ops/elementwise/broadcast.h"
#include "ebb/ops/linalg/gemm.h"

namespace ebb {
namespace {

void check(const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& residual) {
  require_floating("linear", "x", x);
  require_alike("linear", "x", x, "weight", w);
  require(x.rank() >= 2, Kind::shape, "linear", "x must be [...,in]", x.shape(),
          "2 dimensions or more");
  require(w.rank() == 2, Kind::shape, "linear", "weight must be [out,in]", w.shape(),
          "2 dimensions");
  require(x.size(-1) == w.size(1), Kind::shape, "linear", "x and weight differ in features",
          text(x.shape(), " and ", w.shape()), "x [...,in] and weight [out,in]");
  if (b.defined()) {
    require_alike("linear", "x", x, "bias", b);
    require_shape("linear", "bias", b, {w.size(0)});
  }
  if (residual.defined()) {
    require_alike("linear", "x", x, "residual", residual);
    require_shape("linear", "residual", residual, x.shape().with(x.rank() - 1, w.size(0)));
  }
}

void product(const GemmSize& size, const Tensor& a, const Tensor& b, const Tensor& bias,
             const Tensor& plus, Tensor& y) {
  run_as_is<cpu::gemm, gpu::gemm>(y.device(), "linear", size, a, b, bias, plus, y);
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& residual) {
  check(x, w, b, residual);
  const std::int64_t rows = x.shape().product(0, x.rank() - 1);
  const std::int64_t in = w.size(1);
  const std::int64_t out = w.size(0);
  Tensor y = empty(x.shape().with(x.rank() - 1, out), x.options());
  product({1, rows, out, in, false, true}, x, w, b, residual, y);
  const bool needs_x = x.requires_grad();
  const bool needs_w = w.requires_grad();
  const bool needs_b = b.requires_grad();
  return record("linear", y, {x, w, b, residual},
                [=, x = Saved(x), w = Saved(w)](const Tensor& dy) -> Gradients {
                  Tensor dx, dw, db;
                  if (needs_x) {
                    dx = empty_like(x);
                    product({1, rows, in, out}, dy, w, {}, {}, dx);
                  }
                  if (needs_w) {
                    dw = empty_like(w);
                    product({1, out, in, rows, true, false}, dy, x, {}, {}, dw);
                  }
                  if (needs_b) db = sum_to(dy, {out});
                  return {dx, dw, db, dy};
                });
}

}  // namespace ebb
