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
  run<cpu::cross_entropy, gpu::cross_entropy>(x.device(), x, target, w, options, state, y);
  return record(op, y, {x},
                [x = Saved(x), target = Saved(target), w = Saved(w), options,
                 state](const Tensor& dy) -> Gradients {
                  Tensor dx = x.to_write_over();  // logits are the largest tensor of most models
                  run<cpu::cross_entropy_backward, gpu::cross_entropy_backward>(
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

template <class T>
T nan() {
  return std::numeric_limits<T>::quiet_NaN();
}

std::int64_t grain(std::int64_t classes) { return 16384 / (classes + 8); }

// One row's loss from its largest logit and log Σ exp(x − max); `w` may be null.
template <class T>
T row_loss(const T* x, T max, std::int64_t classes, std::int64_t t, const T* w, T log_sum,
           double e) {
  T loss = T(1 - e) * (w ? w[t] : T(1)) * (log_sum - (x[t] - max));
  if (e > 0) {
    const cpu::Simd<T> m = max, s = log_sum;
    const auto term = [m, s](auto x) { return s - (x - m); };
    const auto weighted = [term](auto x, auto w) { return w * term(x); };
    const double spread =
        w ? cpu::sum_row<T>(classes, weighted, x, w) : cpu::sum_row<T>(classes, term, x);
    loss += T(e / static_cast<double>(classes) * spread);
  }
  return loss;
}

template <class T>
void forward(const Tensor& x, const Tensor& target, const T* w, const CrossEntropyOptions& options,
             CrossEntropyState& state, cpu::Array<T>& loss, cpu::Array<T>& share) {
  const std::int64_t classes = x.size(1);
  const std::int32_t* labels = target.data<std::int32_t>();
  const T* from = x.data<T>();
  T *maxima = state.max.data<T>(), *log_sums = state.log_sum.data<T>();
  const auto finish = [&](std::int64_t r, T max, T log_sum) {
    maxima[r] = max;
    log_sums[r] = log_sum;
    const std::int32_t t = labels[r];
    const bool ignored = t == options.ignore_index;
    const bool good = !ignored && 0 <= t && t < classes;
    share[r] = good && w ? w[t] : T(!ignored);
    loss[r] =
        ignored ? T(0)
        : good  ? row_loss(from + r * classes, max, classes, t, w, log_sum, options.label_smoothing)
                : nan<T>();
  };
  for (std::int64_t r = 0; r < x.size(0) && classes == 0; ++r) finish(r, T(0), T(0));
  const auto finish_rows = [&](std::int64_t first, std::int64_t count, const T* max, double* sums) {
    cpu::map_row(
        sums, count, [](auto sum) { return log(sum); }, sums);
    for (std::int64_t r = 0; r < count; ++r) finish(first + r, max[r], T(sums[r]));
  };
  const View view{x.size(0), classes, 1};
  if (cpu::are_short_rows<T>(view)) {
    const auto f = [&](auto first, auto count, const View& c, const T* columns, T* near) {
      cpu::ColumnExponentials<T> e(columns, c, c.inner, near);
      finish_rows(first, count, e.max, e.sum);
    };
    return cpu::for_short_rows(view, f, static_cast<T*>(nullptr), 0, from);
  }
  cpu::for_rows(view, [&](std::int64_t at, std::int64_t count) {
    cpu::Array<T> exponentials(count * classes);
    cpu::RowExponentials<T> e(from + at, classes, count, exponentials.data());
    finish_rows(at / classes, count, e.max, e.sum);
  });
}

}  // namespace

void cpu::cross_entropy(const Tensor& x, const Tensor& target, const Tensor& weight,
                        const CrossEntropyOptions& options, CrossEntropyState& state, Tensor& y) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t n = x.size(0);
    Array<T> loss(n), share(n);
    forward(x, target, weight.defined() ? weight.data<T>() : nullptr, options, state, loss, share);
    T* divisor = state.divisor.data<T>();
    *divisor = T(1);
    if (options.reduction == Reduction::none) {
      array(y.data<T>(), n) = loss;
      return;
    }
    const double total = long_sum_of(n, [&](std::int64_t r) { return loss[r]; });
    const double shares = long_sum_of(n, [&](std::int64_t r) { return share[r]; });
    const bool mean = options.reduction == Reduction::mean;
    if (mean) *divisor = T(shares);
    *y.data<T>() = T(mean ? total / shares : total);
  });
}

void cpu::cross_entropy_backward(const Tensor& x, const Tensor& target, const Tensor& weight,
                                 const CrossEntropyOptions& options, const CrossEntropyState& state,
                                 const Tensor& dy, Tensor& dx) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t classes = x.size(1);
    const T* w = weight.defined() ? weight.data<T>() : nullptr;
    const T e = T(options.label_smoothing);
    const T spread = e / T(classes);
    const T all = state.weight_sum.defined() ? *state.weight_sum.data<T>() : T(classes);
    const bool each = options.reduction == Reduction::none;
    const T *from = x.data<T>(), *upstream = dy.data<T>();
    const T *maxima = state.max.data<T>(), *log_sums = state.log_sum.data<T>();
    const T divisor = *state.divisor.data<T>();
    const std::int32_t* labels = target.data<std::int32_t>();
    T* to = dx.data<T>();
    parallel_for(x.size(0), grain(classes), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        auto out = array(to + r * classes, classes);
        const std::int32_t t = labels[r];
        const bool good = 0 <= t && t < classes;
        if (t == options.ignore_index || !good) {
          out.setConstant(t == options.ignore_index ? T(0) : nan<T>());
          continue;
        }
        const T g = upstream[each ? r : 0] / divisor;
        const T hit = (T(1) - e) * (w ? w[t] : T(1));
        const Simd<T> max = maxima[r], log_sum = log_sums[r];
        map_row(
            out.data(), classes, [=](auto x) { return exp((x - max) - log_sum); },
            from + r * classes);
        const T at_target = hit * (out[t] - T(1)) + spread * (all * out[t] - (w ? w[t] : T(1)));
        if (e > 0) {
          out = hit * out + (spread * all) * out;
          if (w) out -= spread * array(w, classes);
          if (!w) out -= spread;
          out *= g;
        } else {
          map_row(
              out.data(), classes, [scale = Simd<T>(g * hit)](auto p) { return p * scale; },
              out.data());
        }
        out[t] = g * at_target;
      }
    });
  });
}

}  // namespace ebb
