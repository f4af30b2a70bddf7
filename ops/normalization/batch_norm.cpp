#include "ebb/ops/normalization/batch_norm.h"

#include <algorithm>

#include "ebb/core/eigen.h"
#include "ebb/ops/sums.h"

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
  require(running_mean.defined() && running_var.defined(), Kind::value, op,
          "running_mean and running_var are needed", "undefined", "two tensors [C]");
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
  if (options.training) {
    running_mean.require_writable(op);
    running_var.require_writable(op);
    run<cpu::batch_norm_statistics, gpu::batch_norm_statistics>(
        device, x, planes, options, running_mean, running_var, mean, inverse);
    running_mean.bump_version();
    running_var.bump_version();
  } else {
    run<cpu::batch_norm_running, gpu::batch_norm_running>(device, running_mean, running_var,
                                                          options.eps, mean, inverse);
  }
  Tensor y = empty_like(x);
  run<cpu::batch_norm_apply, gpu::batch_norm_apply>(device, x, planes, mean, inverse, weight, bias,
                                                    y);
  const auto backward = [x = Saved(x), weight = Saved(weight), mean, inverse, planes,
                         training = options.training, needs_x = x.requires_grad(),
                         needs_weight = weight.requires_grad(),
                         needs_bias = bias.requires_grad()](const Tensor& dy) -> Gradients {
    Tensor sum_dy = empty_like(mean);
    Tensor sum_dy_x = empty_like(mean);
    if (training || needs_weight || needs_bias) {
      run<cpu::batch_norm_sums, gpu::batch_norm_sums>(dy.device(), x.get(), dy, planes, mean,
                                                      inverse, sum_dy, sum_dy_x);
    }
    Tensor dx;
    if (needs_x) {
      dx = empty_like(x);
      run<cpu::batch_norm_backward, gpu::batch_norm_backward>(dy.device(), x.get(), dy, planes,
                                                              mean, inverse, weight.get(), sum_dy,
                                                              sum_dy_x, training, dx);
    }
    return {dx, needs_weight ? sum_dy_x.to(dy.dtype()) : Tensor(),
            needs_bias ? sum_dy.to(dy.dtype()) : Tensor()};
  };
  return record(op, y, {x, weight, bias}, backward);
}

namespace {

using cpu::array;
using cpu::sum_of;

std::int64_t grain(std::int64_t plane) { return 16384 / (plane + 8); }

// Calls f(plane index, channel) for every plane, on all threads.
template <class F>
void for_planes(const Planes& s, F f) {
  parallel_for(s.samples * s.channels, grain(s.plane), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) f(p, p % s.channels);
  });
}

// Totals for each channel of what terms(plane, channel, element place, q) says: rows of channels
// when planes are single values, else plane by plane and then over the samples in order.
template <int count, class Term>
std::vector<double> channel_sums(const Planes& s, const Term& term) {
  if (s.plane == 1) {
    return cpu::column_sums<count>(
        s.samples, s.channels,
        [&](std::int64_t row, std::int64_t first, std::int64_t columns, double** sums) {
          for (std::int64_t i = 0; i < columns; ++i)
            for (int q = 0; q < count; ++q)
              sums[q][i] += term(row * s.channels + first + i, first + i, q);
        });
  }
  std::vector<double> partial(static_cast<size_t>(count * s.samples * s.channels));
  for_planes(s, [&](std::int64_t p, std::int64_t c) {
    for (int q = 0; q < count; ++q)
      partial[static_cast<size_t>(q * s.samples * s.channels + p)] =
          sum_of(p * s.plane, (p + 1) * s.plane, [&](std::int64_t i) { return term(i, c, q); });
  });
  std::vector<double> sums(static_cast<size_t>(count * s.channels));
  for (int q = 0; q < count; ++q)
    for (std::int64_t p = 0; p < s.samples * s.channels; ++p)
      sums[static_cast<size_t>(q * s.channels + p % s.channels)] +=
          partial[static_cast<size_t>(q * s.samples * s.channels + p)];
  return sums;
}

template <class R>
void move_running(Tensor& running, double batch, double momentum, std::int64_t c) {
  R& r = running.data<R>()[c];
  r = R((1 - momentum) * static_cast<double>(r) + momentum * batch);
}

}  // namespace

void cpu::batch_norm_statistics(const Tensor& x, const Planes& s, const BatchNormOptions& options,
                                Tensor& running_mean, Tensor& running_var, Tensor& mean,
                                Tensor& inverse) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const T* v = x.data<T>();
    T* m = mean.data<T>();
    const double n = static_cast<double>(s.count());
    const auto sums = channel_sums<1>(s, [=](std::int64_t i, std::int64_t, int) { return v[i]; });
    for (std::int64_t c = 0; c < s.channels; ++c) m[c] = T(sums[static_cast<size_t>(c)] / n);
    const auto squares = channel_sums<1>(s, [=](std::int64_t i, std::int64_t c, int) {
      const T d = v[i] - m[c];
      return d * d;
    });
    visit<float, double>(running_mean.dtype(), op, [&](auto kind) {
      using R = decltype(kind);
      for (std::int64_t c = 0; c < s.channels; ++c) {
        const double exact = sums[static_cast<size_t>(c)] / n;
        const double off =
            exact - static_cast<double>(m[c]);  // differences were from a rounded mean
        const double square = squares[static_cast<size_t>(c)] - n * off * off;
        inverse.data<T>()[c] = T(1 / std::sqrt(square / n + options.eps));
        move_running<R>(running_mean, exact, options.momentum, c);
        move_running<R>(running_var, square / (n - 1), options.momentum, c);
      }
    });
  });
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

// x − μ of finite numbers may overflow, and times an inverse of 0 be NaN; (x/2 − μ/2) · 2 may not,
// and has the same bits.
void cpu::batch_norm_apply(const Tensor& x, const Planes& s, const Tensor& mean,
                           const Tensor& inverse, const Tensor& weight, const Tensor& bias,
                           Tensor& y) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    constexpr T half = T(0.5);
    const std::int64_t channels = s.channels;
    const Array<T> m = half * array(mean.data<T>(), channels);
    Array<T> scale = 2 * array(inverse.data<T>(), channels);
    if (weight.defined()) scale *= array(weight.data<T>(), channels);
    Array<T> shift = Array<T>::Zero(channels);
    if (bias.defined()) shift = array(bias.data<T>(), channels);
    const auto in = [&](std::int64_t p, std::int64_t n) { return array(x.data<T>() + p * n, n); };
    const auto out = [&](std::int64_t p, std::int64_t n) { return array(y.data<T>() + p * n, n); };
    if (s.plane == 1) {
      parallel_for(s.samples, grain(channels), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r)
          out(r, channels) = (half * in(r, channels) - m) * scale + shift;
      });
      return;
    }
    for_planes(s, [&](std::int64_t p, std::int64_t c) {
      out(p, s.plane) = (half * in(p, s.plane) - m[c]) * scale[c] + shift[c];
    });
  });
}

void cpu::batch_norm_sums(const Tensor& x, const Tensor& dy, const Planes& s, const Tensor& mean,
                          const Tensor& inverse, Tensor& sum_dy, Tensor& sum_dy_x) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    constexpr T half = T(0.5);
    const T* v = x.data<T>();
    const T* g = dy.data<T>();
    const T* m = mean.data<T>();
    const T* r = inverse.data<T>();
    const auto sums = channel_sums<2>(s, [=](std::int64_t i, std::int64_t c, int q) {
      return q == 0 ? g[i] : g[i] * ((half * v[i] - half * m[c]) * (2 * r[c]));
    });
    for (std::int64_t c = 0; c < s.channels; ++c) {
      sum_dy.data<T>()[c] = T(sums[static_cast<size_t>(c)]);
      sum_dy_x.data<T>()[c] = T(sums[static_cast<size_t>(s.channels + c)]);
    }
  });
}

void cpu::batch_norm_backward(const Tensor& x, const Tensor& dy, const Planes& s,
                              const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                              const Tensor& sum_dy, const Tensor& sum_dy_x, bool training,
                              Tensor& dx) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    constexpr T half = T(0.5);
    const std::int64_t channels = s.channels;
    const Array<T> m = half * array(mean.data<T>(), channels);
    const Array<T> r = array(inverse.data<T>(), channels);
    Array<T> scale = r;
    if (weight.defined()) scale *= array(weight.data<T>(), channels);
    Array<T> a = Array<T>::Zero(channels);  // dx = scale · (dy − a − b · (x − μ)/2)
    Array<T> b = a;
    if (training) {
      a = array(sum_dy.data<T>(), channels) / T(s.count());
      b = array(sum_dy_x.data<T>(), channels) * (2 * r) / T(s.count());
    }
    const auto in = [&](std::int64_t p, std::int64_t n) { return array(x.data<T>() + p * n, n); };
    const auto g = [&](std::int64_t p, std::int64_t n) { return array(dy.data<T>() + p * n, n); };
    const auto out = [&](std::int64_t p, std::int64_t n) { return array(dx.data<T>() + p * n, n); };
    if (s.plane == 1) {
      parallel_for(s.samples, grain(channels), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p)
          out(p, channels) = scale * (g(p, channels) - a - b * (half * in(p, channels) - m));
      });
      return;
    }
    for_planes(s, [&](std::int64_t p, std::int64_t c) {
      out(p, s.plane) = scale[c] * (g(p, s.plane) - a[c] - b[c] * (half * in(p, s.plane) - m[c]));
    });
  });
}

}  // namespace ebb
