#include "ebb/ops/normalization/batch_norm.h"

#include <algorithm>
#include <tuple>

#include "ebb/ops/normalization/moments.h"

namespace ebb {
namespace {

constexpr const char* op = "batch_norm";

void check_channel(std::string_view name, const Tensor& v, const Tensor& x, Dtype other) {
  if (!v.defined()) return;
  require_shape(op, name, v, {x.size(1)});
  require(v.device() == x.device(), Kind::device, op,
          text("x and ", name, " are on different devices"), text(x.device(), " and ", v.device()),
          "one device");
  require(v.dtype() == x.dtype() || v.dtype() == other, Kind::dtype, op,
          text(name, " has the wrong dtype"), v.dtype(), text(x.dtype(), " or ", other));
}

Planes check(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
             const Tensor& weight, const Tensor& bias, const BatchNormOptions& options) {
  require_floating(op, "x", x);
  require(2 <= x.rank() && x.rank() <= 4, Kind::shape, op, "x must be [N,C], [N,C,L] or [N,C,H,W]",
          x.shape(), "2 to 4 dimensions");
  require_defined(op, "running_mean", running_mean);
  require_defined(op, "running_var", running_var);
  check_channel("running_mean", running_mean, x, Dtype::f32);
  check_channel("running_var", running_var, x, running_mean.dtype());
  require(running_var.dtype() == running_mean.dtype(), Kind::dtype, op,
          "running_mean and running_var differ in dtype",
          text(running_mean.dtype(), " and ", running_var.dtype()), "one dtype");
  check_channel("weight", weight, x, x.dtype());
  check_channel("bias", bias, x, x.dtype());
  require(options.eps >= 0 && std::isfinite(options.eps), Kind::value, op, "eps out of range",
          options.eps, "0 or more");
  require(0 <= options.momentum && options.momentum <= 1, Kind::value, op, "momentum out of range",
          options.momentum, "[0,1]");
  const Planes planes{x.size(0), x.size(1), x.shape().product(2, x.rank())};
  require(!options.training || planes.count() > 1, Kind::value, op,
          "more than 1 value for each channel is needed in training", x.shape(),
          "N·H·W of 2 or more");
  if (!x.device().is_cuda()) {
    const std::vector<double> var = running_var.to(Dtype::f64).to_vector<double>();
    const auto negative = std::ranges::find_if(var, [](double v) { return v < 0; });
    require(negative == var.end(), Kind::value, op, "running_var is negative",
            text(negative == var.end() ? 0 : *negative, " at channel ", negative - var.begin()),
            "0 or more");
  }
  return planes;
}

}  // namespace

Tensor batch_norm(const Tensor& x, Tensor running_mean, Tensor running_var, const Tensor& weight,
                  const Tensor& bias, BatchNormOptions options) {
  const Planes planes = check(x, running_mean, running_var, weight, bias, options);
  const Device device = x.device();
  const TensorOptions wide{x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, device};
  Tensor mean = empty({planes.channels}, wide);
  Tensor inverse = empty({planes.channels}, wide);
  Tensor y = empty_like(x);
  if (options.training) {
    running_mean.require_writable(op);
    running_var.require_writable(op);
    run_as_is<cpu::batch_norm_train, gpu::batch_norm_train>(
        device, x, planes, options, weight, bias, running_mean, running_var, mean, inverse, y);
    running_mean.bump_version();
    running_var.bump_version();
  } else {
    run_as_is<cpu::batch_norm_running, gpu::batch_norm_running>(device, running_mean, running_var,
                                                                options.eps, mean, inverse);
    run_as_is<cpu::batch_norm_apply, gpu::batch_norm_apply>(device, x, planes, mean, inverse,
                                                            weight, bias, y);
  }
  const auto backward = [x = Saved(x), weight = Saved(weight), mean, inverse, planes,
                         training = options.training, needs_x = x.requires_grad(),
                         needs_weight = weight.requires_grad(),
                         needs_bias = bias.requires_grad()](const Tensor& dy) -> Gradients {
    const bool sums = training || needs_weight || needs_bias;
    Tensor sum_dy = sums ? empty_like(mean) : Tensor();
    Tensor sum_dy_x = sums ? empty_like(mean) : Tensor();
    const auto narrow = [&](bool needed) {
      return needed && mean.dtype() != dy.dtype() ? empty(mean.shape(), dy.options()) : Tensor();
    };
    Tensor dbias = narrow(needs_bias);
    Tensor dweight = narrow(needs_weight);
    Tensor dx = needs_x ? empty_like(x.get()) : Tensor();
    run_as_is<cpu::batch_norm_backward, gpu::batch_norm_backward>(
        dy.device(), x.get(), dy, planes, mean, inverse, weight.get(), training, sum_dy, sum_dy_x,
        dbias, dweight, dx);
    if (needs_bias && !dbias.defined()) dbias = sum_dy;
    if (needs_weight && !dweight.defined()) dweight = sum_dy_x;
    return {dx, dweight, dbias};
  };
  return record(op, y, {x, weight, bias}, backward);
}

namespace {

using namespace cpu;

// Planes of less than a register: a sample is gone through as a row, of which each element has its
// channel's numbers beside it.
template <class T>
bool go_by_rows(const Planes& s) {
  return s.plane < cpu::lanes<Wide<T>>;
}

// How many such rows are gone through together: short ones are joined.
std::int64_t joined(const Planes& s) {
  return std::clamp<std::int64_t>(256 / (s.channels * s.plane + 1), 1,
                                  std::max<std::int64_t>(s.samples, 1));
}

// Calls f(at, n) for n elements of joined rows, from element `at` on.
template <class F>
void for_joined_rows(const Planes& s, F f) {
  const std::int64_t row = s.channels * s.plane, n = joined(s) * row, all = s.samples * row;
  if (all == 0) return;
  parallel_for((all + n - 1) / n, grain(n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin * n; at < std::min(all, end * n); at += n)
      f(at, std::min(n, all - at));
  });
}

// What there is of each channel, for each of its elements, again and again.
template <class T>
Array<T> of_joined_rows(const Planes& s, const Array<T>& channels) {
  const std::int64_t row = s.channels * s.plane;
  Array<T> all(joined(s) * row);
  cpu::matrix(all.data(), s.channels, s.plane).colwise() = channels.matrix();
  for (std::int64_t at = row; at < all.size(); at += row) std::copy_n(all.data(), row, &all[at]);
  return all;
}

// y = formula(k…, x…): beside its elements x each channel's numbers k.
template <class T, class Formula, class... K, class... X>
void map_channels(const Planes& s, T* y, Formula formula, const std::tuple<K...>& constants,
                  const X*... x) {
  const auto by_rows = [&](const auto&... k) {
    const auto rows = std::tuple(of_joined_rows(s, k)...);
    for_joined_rows(s, [&](std::int64_t at, std::int64_t n) {
      const auto map = [&](const auto&... k) {
        map_row(y + at, n, formula, k.data()..., (x + at)...);
      };
      std::apply(map, rows);
    });
  };
  const auto by_planes = [&](const auto&... k) {
    for_planes(s, [&](std::int64_t p, std::int64_t c) {
      const auto of_channel = [formula, ... k = Simd<Wide<T>>(k[c])](auto... x) {
        return formula(k..., x...);
      };
      map_row(y + p * s.plane, s.plane, of_channel, (x + p * s.plane)...);
    });
  };
  go_by_rows<T>(s) ? std::apply(by_rows, constants) : std::apply(by_planes, constants);
}

// running ← (1 − momentum) · running + momentum · batch
void move(Tensor& running, const Array<double>& batch, double momentum) {
  visit<float, double, bf16>(running.dtype(), op, [&](auto zero) {
    using R = decltype(zero);
    R* r = running.data<R>();
    for (std::int64_t c = 0; c < batch.size(); ++c)
      r[c] = R(Wide<R>((1 - momentum) * static_cast<double>(wide(r[c])) + momentum * batch[c]));
  });
}

}  // namespace

void cpu::batch_norm_train(const Tensor& x, const Planes& s, const BatchNormOptions& options,
                           const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                           Tensor& running_var, Tensor& mean, Tensor& inverse, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const auto n = static_cast<double>(s.count());
    const auto [means, squares] = channel_moments(x.data<T>(), s);
    array(mean.data<W>(), s.channels) = means.template cast<W>();
    array(inverse.data<W>(), s.channels) =
        (squares / n + options.eps).sqrt().inverse().template cast<W>();
    move(running_mean, means, options.momentum);
    move(running_var, squares / (n - 1), options.momentum);
  });
  batch_norm_apply(x, s, mean, inverse, weight, bias, y);
}

void cpu::batch_norm_running(const Tensor& running_mean, const Tensor& running_var, double eps,
                             Tensor& mean, Tensor& inverse) {
  const Tensor m = running_mean.to(mean.dtype());
  const Tensor var = running_var.to(mean.dtype());
  visit<float, double>(mean.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    array(mean.data<T>(), m.numel()) = array(m.data<T>(), m.numel());
    array(inverse.data<T>(), m.numel()) =
        (array(var.data<T>(), m.numel()) + T(eps)).sqrt().inverse();
  });
}

namespace {

// x − μ of finite numbers may overflow, and times an inverse of 0 be NaN; (x/2 − μ/2) · 2 may not,
// and has the same bits.
template <class T>
constexpr T half = T(0.5);

// Those of a tensor [channels] of T, or the same number for each where there is none.
template <class T>
Array<Wide<T>> numbers(const Tensor& v, std::int64_t channels, Wide<T> otherwise) {
  Array<Wide<T>> all = Array<Wide<T>>::Constant(channels, otherwise);
  if (v.defined()) std::transform(v.data<T>(), v.data<T>() + channels, all.data(), wide<T>);
  return all;
}

}  // namespace

void cpu::batch_norm_apply(const Tensor& x, const Planes& s, const Tensor& mean,
                           const Tensor& inverse, const Tensor& weight, const Tensor& bias,
                           Tensor& y) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const Array<W> m = half<W> * array(mean.data<W>(), s.channels);
    const Array<W> scale =
        2 * array(inverse.data<W>(), s.channels) * numbers<T>(weight, s.channels, 1);
    const Array<W> shift = numbers<T>(bias, s.channels, 0);
    const auto formula = [](auto m, auto scale, auto shift, auto x) {
      return (half<W> * x - m) * scale + shift;
    };
    map_channels(s, y.data<T>(), formula, std::tie(m, scale, shift), x.data<T>());
  });
}

namespace {

// Σ dy and Σ dy · x̂, [2][channels]; x̂ from halves as above.
template <class T>
std::vector<double> row_sums(const T* x, const T* dy, const Planes& s, const Wide<T>* m,
                             const Wide<T>* r) {
  using W = Wide<T>;
  return cpu::column_sums<2>(
      s.samples, s.channels, [&](auto first, auto last, auto at, auto columns, double** sums) {
        constexpr std::int64_t near = 16;  // rows that stay in the cache for both sums
        const auto step = s.channels;
        for (std::int64_t row = first; row < last; row += near) {
          const std::int64_t end = std::min(last, row + near);
          cpu::add_rows(row, end, columns, sums[0],
                        [step, g = dy + at](auto i, auto c) { return wide(g[i * step + c]); });
          cpu::add_rows(
              row, end, columns, sums[1],
              [step, g = dy + at, v = x + at, mean = m + at, inverse = r + at](auto i, auto c) {
                return wide(g[i * step + c]) *
                       ((half<W> * wide(v[i * step + c]) - half<W> * mean[c]) * (2 * inverse[c]));
              });
        }
      });
}

template <class T>
std::vector<double> plane_sums(const T* x, const T* dy, const Planes& s, const Wide<T>* m,
                               const Wide<T>* r) {
  using W = Wide<T>;
  const std::int64_t planes = s.samples * s.channels;
  std::vector<double> partial(static_cast<size_t>(2 * planes));
  for_planes(s, [&](std::int64_t p, std::int64_t c) {
    const T* v = x + p * s.plane;
    const T* g = dy + p * s.plane;
    const auto g_hat = [mean = Simd<W>(half<W> * m[c]), inverse = Simd<W>(2 * r[c])](
                           auto g, auto x) { return g * ((half<W> * x - mean) * inverse); };
    partial[static_cast<size_t>(p)] = row_sum(g, s.plane);
    partial[static_cast<size_t>(planes + p)] = sum_row<T>(s.plane, g_hat, g, v);
  });
  std::vector<double> sums(static_cast<size_t>(2 * s.channels));
  for (std::int64_t q = 0; q < 2; ++q)
    for (std::int64_t n = 0; n < s.samples; ++n)
      array(sums.data() + q * s.channels, s.channels) +=
          array(partial.data() + q * planes + n * s.channels, s.channels);
  return sums;
}

void find_sums(const Tensor& x, const Tensor& dy, const Planes& s, const Tensor& mean,
               const Tensor& inverse, Tensor& sum_dy, Tensor& sum_dy_x) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const auto sums =
        (s.plane == 1 ? row_sums<T> : plane_sums<T>)(x.data<T>(), dy.data<T>(), s, mean.data<W>(),
                                                     inverse.data<W>());
    array(sum_dy.data<W>(), s.channels) = array(sums.data(), s.channels).template cast<W>();
    array(sum_dy_x.data<W>(), s.channels) =
        array(sums.data() + s.channels, s.channels).template cast<W>();
  });
}

}  // namespace

void cpu::batch_norm_backward(const Tensor& x, const Tensor& dy, const Planes& s,
                              const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                              bool training, Tensor& sum_dy, Tensor& sum_dy_x, Tensor& dbias,
                              Tensor& dweight, Tensor& dx) {
  if (sum_dy.defined()) find_sums(x, dy, s, mean, inverse, sum_dy, sum_dy_x);
  if (dbias.defined()) dbias.copy_(sum_dy);
  if (dweight.defined()) dweight.copy_(sum_dy_x);
  if (!dx.defined()) return;
  if (!training)  // whatever x is, be it NaN
    return batch_norm_apply(dy, s, zeros(mean.shape(), mean.options()), inverse, weight, {}, dx);
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    // dx = scale · (dy − a − b · (x − μ)/2)
    const Array<W> m = half<W> * array(mean.data<W>(), s.channels);
    const Array<W> r = array(inverse.data<W>(), s.channels);
    const Array<W> scale = r * numbers<T>(weight, s.channels, 1);
    const Array<W> a = array(sum_dy.data<W>(), s.channels) / W(s.count());
    const Array<W> b = array(sum_dy_x.data<W>(), s.channels) * (2 * r) / W(s.count());
    const auto formula = [](auto m, auto scale, auto a, auto b, auto x, auto dy) {
      return scale * (dy - a - b * (half<W> * x - m));
    };
    map_channels(s, dx.data<T>(), formula, std::tie(m, scale, a, b), x.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
