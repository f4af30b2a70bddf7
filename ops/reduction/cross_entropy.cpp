#include "ebb/ops/reduction/cross_entropy.h"

#include <limits>

#include "ebb/ops/reduction/lines.h"
#include "ebb/ops/reduction/sum.h"

namespace ebb {
namespace {

constexpr const char* op = "cross_entropy";

}  // namespace

void check_targets(std::string_view op, const Tensor& target, std::int64_t n, std::int64_t classes,
                   Device device, std::int64_t ignore_index, bool values) {
  require_defined(op, "target", target);
  require(target.dtype() == Dtype::i32, Kind::dtype, op, "target must hold class numbers",
          target.dtype(), "i32");
  require(target.device() == device, Kind::device, op, "logits and target are on different devices",
          text(device, " and ", target.device()), "one device");
  require_shape(op, "target", target, {n});
  if (!values) return;
  Tensor found = empty({2}, {Dtype::f64, device});
  run<cpu::find_bad_target, gpu::find_bad_target>(device, target, classes, ignore_index, found);
  const auto [row, value] = [&] {
    const std::vector<double> v = found.to_vector<double>();
    return std::pair{static_cast<std::int64_t>(v[0]), static_cast<std::int64_t>(v[1])};
  }();
  require(row >= n, Kind::index, op, text("target ", value, " not in [0,", classes, "), row ", row),
          value, text("a class, or ignore_index ", ignore_index));
}

namespace {

void check(const Tensor& x, const Tensor& target, const Tensor& weight,
           const CrossEntropyOptions& options) {
  require_floating(op, "logits", x);
  require(x.rank() == 2, Kind::shape, op, "logits must be [N,C]", x.shape(), "2 dimensions");
  if (weight.defined()) {
    require_alike(op, "logits", x, "weight", weight);
    require_shape(op, "weight", weight, {x.size(1)});
  }
  const double smoothing = options.label_smoothing;
  require(0 <= smoothing && smoothing < 1, Kind::value, op, "label_smoothing out of range",
          smoothing, "[0,1)");
  check_targets(op, target, x.size(0), x.size(1), x.device(), options.ignore_index,
                options.check_targets);
}

}  // namespace

Tensor cross_entropy(const Tensor& x, const Tensor& target, const Tensor& weight,
                     const CrossEntropyOptions& options) {
  check(x, target, weight, options);
  const TensorOptions wide{x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, x.device()};
  CrossEntropyState state{empty({x.size(0)}, wide), empty({x.size(0)}, wide), empty({}, wide), {}};
  const Tensor w = weight.defined() ? weight.detach().to(wide.dtype) : Tensor();
  if (w.defined() && options.label_smoothing > 0) state.weight_sum = sum(w);
  const bool each = options.reduction == Reduction::none;
  Tensor y = empty(each ? Shape{x.size(0)} : Shape{}, x.options());
  run_as_is<cpu::cross_entropy, gpu::cross_entropy>(x.device(), x, target, w, options, state, y);
  return record(op, y, {x},
                [x = Saved(x), target = Saved(target), w = Saved(w), options,
                 state](const Tensor& dy) -> Gradients {
                  Tensor dx = x.to_write_over();  // logits are the largest tensor of most models
                  run_as_is<cpu::cross_entropy_backward, gpu::cross_entropy_backward>(
                      dy.device(), x.get(), target.get(), w.get(), options, state, dy, dx);
                  return {dx};
                });
}

Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options) {
  return cross_entropy(logits, target, Tensor(), options);
}

void cpu::find_bad_target(const Tensor& target, std::int64_t classes, std::int64_t ignore_index,
                          Tensor& found) {
  const std::int32_t* t = target.data<std::int32_t>();
  const std::int64_t n = target.numel();
  std::int64_t row = 0;
  while (row < n && (t[row] == ignore_index || (0 <= t[row] && t[row] < classes))) ++row;
  found.data<double>()[0] = static_cast<double>(row);
  found.data<double>()[1] = row < n ? t[row] : 0;
}

namespace {

using cpu::map_row;
using cpu::Simd;
using cpu::wide;
using cpu::Wide;

template <class T>
constexpr T nan = std::numeric_limits<T>::quiet_NaN();

// One row's loss from its largest logit and log Σ exp(x − max); `w` may be null.
template <class T>
Wide<T> row_loss(const T* x, Wide<T> max, std::int64_t classes, std::int64_t t, const Wide<T>* w,
                 Wide<T> log_sum, double e) {
  using W = Wide<T>;
  W loss = W(1 - e) * (w ? w[t] : W(1)) * (log_sum - (wide(x[t]) - max));
  if (e > 0) {
    const Simd<W> m = max, s = log_sum;
    const auto term = [m, s](auto x) { return s - (x - m); };
    const auto weighted = [term](auto x, auto w) { return w * term(x); };
    const double spread =
        w ? cpu::sum_row<T>(classes, weighted, x, w) : cpu::sum_row<T>(classes, term, x);
    loss += W(e / static_cast<double>(classes) * spread);
  }
  return loss;
}

template <class T, class W = Wide<T>>
void forward(const Tensor& x, const Tensor& target, const W* w, const CrossEntropyOptions& options,
             CrossEntropyState& state, cpu::Array<W>& loss, cpu::Array<W>& share) {
  const std::int64_t classes = x.size(1);
  const std::int32_t* labels = target.data<std::int32_t>();
  const T* from = x.data<T>();
  W *maxima = state.max.data<W>(), *log_sums = state.log_sum.data<W>();
  const auto finish = [&](std::int64_t r, W max, W log_sum) {
    maxima[r] = max;
    log_sums[r] = log_sum;
    const std::int32_t t = labels[r];
    const bool ignored = t == options.ignore_index;
    const bool good = !ignored && 0 <= t && t < classes;
    share[r] = good && w ? w[t] : W(!ignored);
    loss[r] =
        ignored ? W(0)
        : good  ? row_loss(from + r * classes, max, classes, t, w, log_sum, options.label_smoothing)
                : nan<W>;
  };
  for (std::int64_t r = 0; r < x.size(0) && classes == 0; ++r) finish(r, W(0), W(0));
  const auto finish_rows = [&](std::int64_t first, std::int64_t count, const W* max, double* sums) {
    cpu::map_row(
        sums, count, [](auto sum) { return log(sum); }, sums);
    for (std::int64_t r = 0; r < count; ++r) finish(first + r, max[r], W(sums[r]));
  };
  const View view{x.size(0), classes, 1};
  if (cpu::are_short_rows<T>(view)) {
    const auto f = [&](auto first, auto count, const View& c, const W* columns, W* near) {
      cpu::ColumnExponentials<W> e(columns, c, c.inner, near, c.inner);
      finish_rows(first, count, e.max, e.sum);
    };
    return cpu::for_short_rows(view, f, static_cast<T*>(nullptr), 0, from);
  }
  cpu::for_rows(view, [&](std::int64_t at, std::int64_t count) {
    cpu::RowExponentials<T> e(from + at, classes, count);
    finish_rows(at / classes, count, e.max, e.sum);
  });
}

}  // namespace

void cpu::cross_entropy(const Tensor& x, const Tensor& target, const Tensor& weight,
                        const CrossEntropyOptions& options, CrossEntropyState& state, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const std::int64_t n = x.size(0);
    Array<W> loss(n), share(n);
    forward<T>(x, target, weight.defined() ? weight.data<W>() : nullptr, options, state, loss,
               share);
    W* divisor = state.divisor.data<W>();
    *divisor = W(1);
    if (options.reduction == Reduction::none) {
      map_row(
          y.data<T>(), n, [](auto x) { return x; }, loss.data());
      return;
    }
    const double total = long_sum_of(n, [&](std::int64_t r) { return loss[r]; });
    const double shares = long_sum_of(n, [&](std::int64_t r) { return share[r]; });
    const bool mean = options.reduction == Reduction::mean;
    if (mean) *divisor = W(shares);
    *y.data<T>() = T(W(mean ? total / shares : total));
  });
}

namespace {

// dx of rows with good targets. The gradient at a target is exact where p is nearly 1.
template <class T>
struct Gradient {
  using W = Wide<T>;
  std::int64_t classes;
  const std::int32_t* labels;
  std::int64_t ignore_index;
  const W* w;          // or null
  W hit, spread, all;  // 1 − ε, ε / C and Σw
  const W *max, *log_sum;
  const T* upstream;
  bool each;
  W divisor;

  bool is_class(std::int32_t t) const { return t != ignore_index && 0 <= t && t < classes; }
  W weight(std::int64_t c) const { return w ? w[c] : W(1); }
  W factor(std::int64_t r) const { return wide(upstream[each ? r : 0]) / divisor; }

  // What an ignored row has everywhere, and one with a bad target.
  W otherwise(std::int32_t t) const { return t == ignore_index ? W(0) : nan<W>; }

  W at_target(std::int64_t r, std::int32_t t, W p) const {
    return factor(r) * (hit * weight(t) * (p - W(1)) + spread * (all * p - weight(t)));
  }

  // g · (h p + ε/C (Σw p − w)), h = (1 − ε) w_t
  template <class V>
  static V elsewhere(V p, V w, V h, V g, V spread, V all) {
    return (h * p + spread * (all * p - w)) * g;
  }

  void row(std::int64_t r, const T* x, T* dx) const {
    const std::int32_t t = labels[r];
    if (!is_class(t)) return void(std::fill_n(dx, classes, T(otherwise(t))));
    const auto p = [m = Simd<W>(max[r]), s = Simd<W>(log_sum[r])](Simd<W> x) {
      return exp((x - m) - s);
    };
    const W own = at_target(r, t, first(p(wide(x[t]))));
    const Simd<W> h = hit * weight(t), g = factor(r), e = spread, a = all;
    if (spread == 0)
      map_row(
          dx, classes, [p, scale = h * g](auto x) { return p(x) * scale; }, x);
    else if (w)
      map_row(
          dx, classes, [=](auto x, auto w) { return elsewhere(p(x), w, h, g, e, a); }, x, w);
    else
      map_row(
          dx, classes, [=](auto x) { return elsewhere(p(x), Simd<W>(W(1)), h, g, e, a); }, x);
    dx[t] = T(own);
  }

  // `count` short rows as columns.
  void columns(std::int64_t r, std::int64_t count, std::int64_t step, const W* x, W* dx) const {
    constexpr std::int64_t most = cpu::near_elements<T>;
    W m[most] = {}, s[most] = {}, h[most] = {}, g[most] = {}, own[most];
    std::copy_n(max + r, count, m);
    std::copy_n(log_sum + r, count, s);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t t = labels[r + i];
      h[i] = is_class(t) ? hit * weight(t) : W(0);
      g[i] = factor(r + i);
      own[i] = x[(is_class(t) ? t : 0) * step + i];
    }
    const auto p = [](auto x, auto m, auto s) { return exp((x - m) - s); };
    map_row(own, count, p, own, m, s);
    for (std::int64_t c = 0; c < classes; ++c) {
      const Simd<W> w = weight(c), e = spread, a = all;
      map_row(
          dx + c * step, step,
          [=](auto x, auto m, auto s, auto h, auto g) {
            return elsewhere(p(x, m, s), w, h, g, e, a);
          },
          x + c * step, m, s, h, g);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t t = labels[r + i];
      if (is_class(t)) dx[t * step + i] = at_target(r + i, t, own[i]);
      for (std::int64_t c = 0; c < classes && !is_class(t); ++c) dx[c * step + i] = otherwise(t);
    }
  }
};

}  // namespace

void cpu::cross_entropy_backward(const Tensor& x, const Tensor& target, const Tensor& weight,
                                 const CrossEntropyOptions& options, const CrossEntropyState& state,
                                 const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const View view{x.size(0), x.size(1), 1};
    const W e = W(options.label_smoothing);
    const Gradient<T> gradient{view.n,
                               target.data<std::int32_t>(),
                               options.ignore_index,
                               weight.defined() ? weight.data<W>() : nullptr,
                               W(1) - e,
                               e / W(view.n),
                               state.weight_sum.defined() ? *state.weight_sum.data<W>() : W(view.n),
                               state.max.data<W>(),
                               state.log_sum.data<W>(),
                               dy.data<T>(),
                               options.reduction == Reduction::none,
                               *state.divisor.data<W>()};
    const T* from = x.data<T>();
    T* to = dx.data<T>();
    if (are_short_rows<T>(view)) {
      const auto f = [&](auto first, auto count, const View& c, const W* x, W* dx) {
        gradient.columns(first, count, c.inner, x, dx);
      };
      return for_short_rows(view, f, to, view.n, from);
    }
    parallel_for(view.outer, 16384 / (view.n + 8), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        gradient.row(r, from + r * view.n, to + r * view.n);
    });
  });
}

}  // namespace ebb
