#include "ebb/ops/reduction/linear_cross_entropy.h"

#include <bit>
#include <limits>

#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/linalg/gemm.h"
#include "ebb/ops/reduction/cross_entropy.h"
#include "ebb/ops/reduction/lines.h"
#include "ebb/ops/reduction/sum.h"
#include "ebb/ops/shape/concat.h"
#include "ebb/ops/shape/slice.h"

namespace ebb {
namespace {

constexpr const char* op = "linear_cross_entropy";

void check(const Tensor& x, const Tensor& w, const Tensor& target,
           const LinearCrossEntropyOptions& o) {
  require_floating(op, "x", x);
  require_alike(op, "x", x, "w", w);
  require(x.rank() == 2, Kind::shape, op, "x must be [N,D]", x.shape(), "2 dimensions");
  require(w.rank() == 2 && w.size(1) == x.size(1), Kind::shape, op, "w must be [C,D]",
          text(w.shape(), " for x ", x.shape()), text("[C,", x.size(1), "]"));
  require(o.reduction != Reduction::none, Kind::value, op, "no loss of each row", "none",
          "mean or sum");
  require(o.logits_at_a_time >= 1, Kind::value, op, "bad logits_at_a_time", o.logits_at_a_time,
          "1 or more");
  check_targets(op, target, x.size(0), w.size(0), x.device(), o.ignore_index, o.check_targets);
}

void product(const GemmSize& size, const Tensor& a, const Tensor& b, const Tensor& plus,
             Tensor& y) {
  run_as_is<cpu::gemm, gpu::gemm>(y.device(), op, size, a, b, Tensor(), plus, y);
}

// As many rows as have that many logits, a power of two: products like such sizes.
std::int64_t rows_at_a_time(std::int64_t rows, std::int64_t classes, std::int64_t logits) {
  const auto most = static_cast<std::uint64_t>(std::max<std::int64_t>(logits / (classes + 1), 1));
  return std::min<std::int64_t>(rows, static_cast<std::int64_t>(std::bit_floor(most)));
}

Tensor scaled(const Tensor& x, const Tensor& factor) {
  Tensor y = empty(x.shape(), factor.options());
  run<cpu::scale, gpu::scale>(x.device(), x, factor, y);
  return y;
}

TensorOptions wide(const Tensor& x) {
  return {x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, x.device()};
}

// dx [N,D] of g [N,C], the gradient of the logits.
Tensor input_gradient(const Tensor& g, const Tensor& w) {
  Tensor dx = empty({g.size(0), w.size(1)}, g.options());
  product({1, g.size(0), w.size(1), w.size(0)}, g, w, {}, dx);
  return dx;
}

// dw [C,D], which these rows are added to if there is one.
Tensor weight_gradient(const Tensor& g, const Tensor& x, const Tensor& so_far = {}) {
  Tensor dw = so_far.defined() ? so_far : empty({g.size(1), x.size(1)}, wide(x));
  product({1, g.size(1), x.size(1), g.size(0), true}, g, x, so_far, dw);
  return dw;
}

}  // namespace

Tensor linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& target,
                            const LinearCrossEntropyOptions& o) {
  check(x, w, target, o);
  const std::int64_t n = x.size(0), classes = w.size(0);
  const bool needs_x = grad_enabled() && x.requires_grad();
  const bool needs_w = grad_enabled() && w.requires_grad();
  Tensor divisor = ones({}, wide(x)), loss = empty({n}, wide(x));
  if (o.reduction == Reduction::mean)
    run<cpu::count_targets, gpu::count_targets>(x.device(), target, o.ignore_index, divisor);
  const std::int64_t step = rows_at_a_time(n, classes, o.logits_at_a_time);
  const bool whole = step == n;
  const Tensor all = x.detach();
  Tensor g = empty({0, classes}, x.options()), dw;
  std::vector<Tensor> dx;
  for (std::int64_t first = 0; first < n; first += step) {
    const Tensor part = whole ? all : slice(all, 0, first, std::min(first + step, n));
    g = Tensor();  // before there is another
    g = empty({part.size(0), classes}, x.options());
    product({1, part.size(0), classes, x.size(1), false, true}, part, w, {}, g);
    run_as_is<cpu::loss_and_gradient, gpu::loss_and_gradient>(x.device(), target, first,
                                                              o.ignore_index, divisor, g, loss);
    if (needs_x && !whole) dx.push_back(input_gradient(g, w));
    if (needs_w && !whole) dw = weight_gradient(g, part, dw);
  }
  const Tensor y = (sum(loss) / divisor).to(x.dtype());
  if (whole)
    return record(op, y, {x, w},
                  [=, x = Saved(needs_w ? x : Tensor()), w = Saved(needs_x ? w : Tensor()),
                   g = Saved(g)](const Tensor& dy) -> Gradients {
                    return {needs_x ? scaled(input_gradient(g, w), dy) : Tensor(),
                            needs_w ? scaled(weight_gradient(g, x), dy) : Tensor()};
                  });
  g = Tensor();
  return record(op, y, {x, w},
                [dx = Saved(needs_x ? concat(dx, 0) : Tensor()),
                 dw = Saved(dw)](const Tensor& dy) -> Gradients {
                  const auto by_dy = [&](const Tensor& d) {
                    return d.defined() ? scaled(d, dy) : Tensor();
                  };
                  return {by_dy(dx), by_dy(dw)};
                });
}

void cpu::count_targets(const Tensor& target, std::int64_t ignore_index, Tensor& count) {
  const std::int32_t* t = target.data<std::int32_t>();
  const auto ignored = std::count(t, t + target.numel(), ignore_index);
  count.fill_(static_cast<double>(target.numel() - ignored));
}

void cpu::loss_and_gradient(const Tensor& target, std::int64_t first, std::int64_t ignore_index,
                            const Tensor& divisor, Tensor& logits, Tensor& loss) {
  visit<float, double, bf16>(logits.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const std::int64_t classes = logits.size(1), grain = 16384 / (classes + 8);
    const W by = 1 / *divisor.data<W>();
    parallel_for(logits.size(0), grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        T* row = logits.data<T>() + r * classes;
        const std::int32_t t = target.data<std::int32_t>()[first + r];
        W& own = loss.data<W>()[first + r];
        if (t == ignore_index || t < 0 || t >= classes) {
          own = t == ignore_index ? W(0) : std::numeric_limits<W>::quiet_NaN();
          std::fill_n(row, classes, T(own));
          continue;
        }
        const W logit = wide(row[t]);
        const Unrounded<T> e(row, 1, classes, classes);
        const RowExponentials<T> of(row, classes, 1, e.data);
        const W total = W(of.sum[0]), scale = by / total, at_target = e.data[t] * scale - by;
        own = std::log(total) - (logit - of.max[0]);
        map_row(
            row, classes, [scale = Simd<W>(scale)](auto e) { return e * scale; }, e.data);
        row[t] = T(at_target);
      }
    });
  });
}

void cpu::scale(const Tensor& x, const Tensor& factor, Tensor& y) {
  map(y, x, [by = factor.item()](auto v) { return v * by; });
}

}  // namespace ebb
