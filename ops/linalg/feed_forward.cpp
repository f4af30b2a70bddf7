#include "ebb/ops/linalg/feed_forward.h"

#include "ebb/ops/elementwise/broadcast.h"
#include "ebb/ops/linalg/gemm.h"

namespace ebb {
namespace {

constexpr const char* op = "feed_forward";

void check(const Tensor& x, const Tensor& up, const Tensor& down, const FeedForwardOptions& o) {
  require_floating(op, "x", x);
  require_alike(op, "x", x, "up", up);
  require_alike(op, "x", x, "down", down);
  require(x.rank() >= 2, Kind::shape, op, "x must be [...,in]", x.shape(), "2 dimensions or more");
  require(up.rank() == 2 && x.size(-1) == up.size(1), Kind::shape, op, "up must be [hidden,in]",
          text(up.shape(), " for x ", x.shape()), text("[hidden,", x.size(-1), "]"));
  require(down.rank() == 2 && down.size(1) == up.size(0), Kind::shape, op,
          "down must be [out,hidden]", text(down.shape(), " after up ", up.shape()),
          text("[out,", up.size(0), "]"));
  const auto check_addend = [&](const char* name, const Tensor& t, const Shape& shape) {
    if (!t.defined()) return;
    require_alike(op, "x", x, name, t);
    require_shape(op, name, t, shape);
  };
  check_addend("up_bias", o.up_bias, {up.size(0)});
  check_addend("down_bias", o.down_bias, {down.size(0)});
  check_addend("residual", o.residual, x.shape().with(x.rank() - 1, down.size(0)));
}

// op(a) · op(b), of w's shape.
Tensor product(const GemmSize& size, const Tensor& a, const Tensor& b, const Tensor& like) {
  Tensor y = empty_like(like);
  run_as_is<cpu::gemm, gpu::gemm>(y.device(), op, size, a, b, Tensor(), Tensor(), y);
  return y;
}

}  // namespace

Tensor feed_forward(const Tensor& x, const Tensor& up, const Tensor& down,
                    const FeedForwardOptions& o) {
  check(x, up, down, o);
  const int last = x.rank() - 1;
  const std::int64_t rows = x.shape().product(0, last);
  const std::int64_t in = up.size(1), hidden = up.size(0), out = down.size(0);
  Tensor h = empty(x.shape().with(last, hidden), x.options());
  Tensor g = empty_like(h);  // gelu(h)
  Tensor y = empty(x.shape().with(last, out), x.options());
  run_as_is<cpu::gemm_gelu, gpu::gemm_gelu>(
      x.device(), op, GemmSize{1, rows, hidden, in, false, true}, x, up, o.up_bias, h, g);
  run_as_is<cpu::gemm, gpu::gemm>(x.device(), op, GemmSize{1, rows, out, hidden, false, true}, g,
                                  down, o.down_bias, o.residual, y);
  const bool needs_x = x.requires_grad(), needs_up = up.requires_grad();
  const bool needs_a = o.up_bias.requires_grad(), needs_down = down.requires_grad();
  const bool needs_b = o.down_bias.requires_grad();
  return record(op, y, {x, up, o.up_bias, down, o.down_bias, o.residual},
                [=, x = Saved(x), up = Saved(up), down = Saved(down), h = Saved(h),
                 g = Saved(g)](const Tensor& dy) -> Gradients {
                  Tensor dx, dup, da, ddown, db;
                  if (needs_down) ddown = product({1, out, hidden, rows, true}, dy, g, down);
                  if (needs_b) db = sum_to(dy, {out});
                  if (!needs_x && !needs_up && !needs_a) return {dx, dup, da, ddown, db, dy};
                  Tensor dh = g.to_write_over();
                  run_as_is<cpu::gemm_gelu_backward, gpu::gemm_gelu_backward>(
                      dy.device(), op, GemmSize{1, rows, hidden, out}, dy, down.get(), h.get(), dh);
                  if (needs_up) dup = product({1, hidden, in, rows, true}, dh, x, up);
                  if (needs_a) da = sum_to(dh, {hidden});
                  if (needs_x) dx = product({1, rows, in, hidden}, dh, up, x);
                  return {dx, dup, da, ddown, db, dy};
                });
}

}  // namespace ebb
