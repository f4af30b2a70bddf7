#include "ebb/ops/linalg/linear.h"

#include "ebb/core/eigen.h"
#include "ebb/core/parallel.h"
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
  run<cpu::gemm, gpu::gemm>(y.device(), "linear", size, a, b, bias, plus, y);
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
                  if (needs_b) {
                    db = empty({out}, dy.options());
                    run<cpu::linear_bias_gradient, gpu::linear_bias_gradient>(dy.device(), dy, db);
                  }
                  return {dx, dw, db, dy};
                });
}

// Stripes of columns over threads; within one, sums of blocks of rows added up in order.
void cpu::linear_bias_gradient(const Tensor& dy, Tensor& db) {
  visit<float, double>(dy.dtype(), "linear", [&](auto zero) {
    using T = decltype(zero);
    constexpr std::int64_t stripe = 64;
    constexpr std::int64_t block = 256;
    const std::int64_t out = db.numel();
    const std::int64_t rows = out ? dy.numel() / out : 0;
    const T* from = dy.data<T>();
    T* to = db.data<T>();
    const auto sums_of = [&](std::int64_t first) {
      const std::int64_t columns = std::min(stripe, out - first);
      auto sum = array(to + first, columns);
      sum.setZero();
      for (std::int64_t r = 0; r < rows; r += block) {
        Eigen::Array<T, Eigen::Dynamic, 1, 0, stripe, 1> part;
        part.setZero(columns);
        for (std::int64_t i = r; i < std::min(rows, r + block); ++i)
          part += array(from + i * out + first, columns);
        sum += part;
      }
    };
    const std::int64_t grain = 1 + (1 << 15) / (stripe * (rows + 1));
    parallel_for((out + stripe - 1) / stripe, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t s = begin; s < end; ++s) sums_of(s * stripe);
    });
  });
}

}  // namespace ebb
