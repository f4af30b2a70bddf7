#include "ebb/ops/columns.cuh"
#include "ebb/ops/normalization/batch_norm.h"
#include "ebb/ops/rows.cuh"

// Images: every plane (n, c) is a row, reduced by its own group of threads in one read; then every
// channel merges its planes, whose partial results lie side by side as [C, N], in fixed order.
// [N,C]: sums of columns. The maps see [N,C] as N rows whose columns are the channels.
namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "batch_norm";

// Mean and Σ (x − mean)² of a plane.
template <class T>
struct PlaneStatistics {
  using C = Compute<T>;
  Planes s;
  double* mean;
  double* square;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double n = static_cast<double>(s.plane);
    const double exact =
        row.template sum<double>([](auto, C x) { return x * C(window_scale); }) / window_scale / n;
    const C m = static_cast<C>(exact);
    const double total = row.template sum<double>([=](auto, C x) { return (x - m) * (x - m); });
    if (!row.leader()) return;
    const std::int64_t sample = row.index() / s.channels;
    const std::int64_t at = (row.index() - sample * s.channels) * s.samples + sample;
    const double off = exact - static_cast<double>(m);
    mean[at] = exact;
    square[at] = total - n * off * off;
  }
};

// What becomes of a channel's mean and Σ (x − mean)².
template <class C, class R>
struct Statistics {
  double count;
  double momentum;
  double eps;
  C* mean;
  C* inverse;
  R* running_mean;
  R* running_var;

  __device__ void set(std::int64_t c, double m, double square) const {
    mean[c] = static_cast<C>(m);
    inverse[c] = static_cast<C>(1 / sqrt(square / count + eps));
    move(running_mean[c], m);
    move(running_var[c], square / (count - 1));
  }
  __device__ void move(R& running, double batch) const {
    const double old = static_cast<double>(widen(running));
    running = narrow<R>(static_cast<Compute<R>>((1 - momentum) * old + momentum * batch));
  }
};

// Planes of equal size n: Σ of all = Σ of each + n · Σ (its mean − mean of all)².
template <class C, class R>
struct MergePlanes {
  Planes s;
  Statistics<C, R> result;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double n = static_cast<double>(s.plane);
    const double m = row.template sum<double>([](auto, double mean, double) { return mean; }) /
                     static_cast<double>(s.samples);
    const double square = row.template sum<double>(
        [=](auto, double mean, double square) { return square + n * (mean - m) * (mean - m); });
    if (row.leader()) result.set(row.index(), m, square);
  }
};

template <class T>
struct ValueTerm {
  const T* x;
  __device__ void operator()(std::int64_t i, std::int64_t, Compute<T> (&term)[1]) const {
    term[0] = widen(x[i]) * Compute<T>(window_scale);
  }
};

struct ColumnMean {
  double count;
  double* mean;
  __device__ void operator()(std::int64_t c, const double (&sum)[1]) const {
    mean[c] = sum[0] / window_scale / count;
  }
};

template <class T>
struct SquareTerm {
  const T* x;
  const double* mean;
  __device__ void operator()(std::int64_t i, std::int64_t c, Compute<T> (&term)[1]) const {
    const Compute<T> d = widen(x[i]) - static_cast<Compute<T>>(mean[c]);
    term[0] = d * d;
  }
};

template <class C, class R>
struct ColumnStatistics {
  const double* mean;
  Statistics<C, R> result;
  __device__ void operator()(std::int64_t c, const double (&sum)[1]) const {
    const double off = mean[c] - static_cast<double>(static_cast<C>(mean[c]));
    result.set(c, mean[c], sum[0] - result.count * off * off);
  }
};

template <class T, class R>
void statistics(const Tensor& x, const Planes& s, const Statistics<Compute<T>, R>& result) {
  using C = Compute<T>;
  const T* v = x.data<T>();
  if (s.plane == 1) {
    Tensor mean = empty({s.channels}, {Dtype::f64, x.device()});
    double* m = mean.data<double>();
    columns<C, 1>(op, ValueTerm<T>{v}, ColumnMean{result.count, m}, 1, s.samples, s.channels,
                  x.device());
    columns<C, 1>(op, SquareTerm<T>{v, m}, ColumnStatistics<C, R>{m, result}, 1, s.samples,
                  s.channels, x.device());
    return;
  }
  Tensor partial = empty({2, s.channels, s.samples}, {Dtype::f64, x.device()});
  double* mean = partial.data<double>();
  double* square = mean + s.channels * s.samples;
  keep_rows<T>(op, PlaneStatistics<T>{s, mean, square}, s.samples * s.channels, s.plane, nullptr,
               v);
  stream_rows<double>(op, MergePlanes<C, R>{s, result}, {s.channels, s.samples}, nullptr,
                      static_cast<const double*>(mean), static_cast<const double*>(square));
}

template <class C, class R>
__global__ void __launch_bounds__(128)
    running_kernel(const R* running_mean, const R* running_var, double eps, std::int64_t channels,
                   C* mean, C* inverse) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (c >= channels) return;
  mean[c] = static_cast<C>(widen(running_mean[c]));
  inverse[c] = static_cast<C>(1 / sqrt(static_cast<double>(widen(running_var[c])) + eps));
}

// y = (x − μ) · scale + shift. x − μ of finite numbers may overflow, and times an inverse of 0 be
// NaN; (x/2 − μ/2) · 2 may not, and has the same bits.
template <class T, bool single>
struct Apply {
  using C = Compute<T>;
  struct Channel {
    C mean, scale, shift;  // half, twice
  };
  std::int64_t channels;
  const C* mean;
  const C* inverse;
  const T* weight;  // or null
  const T* bias;    // or null
  T* y;

  __device__ Channel channel(std::int64_t c) const {
    return {C(0.5) * mean[c], 2 * inverse[c] * (weight ? widen(weight[c]) : C(1)),
            bias ? widen(bias[c]) : C(0)};
  }
  template <class Row>
  __device__ void operator()(Row& row) const {
    const Channel own = single ? Channel{} : channel(row.index() % channels);
    row.write(y, [&](auto c, C x) {
      const Channel k = single ? channel(c) : own;
      return (C(0.5) * x - k.mean) * k.scale + k.shift;
    });
  }
};

// Σ dy and Σ dy · x̂ of a plane.
template <class T>
struct PlaneSums {
  using C = Compute<T>;
  Planes s;
  const C* mean;
  const C* inverse;
  double* sum_dy;
  double* sum_dy_x;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t sample = row.index() / s.channels;
    const std::int64_t c = row.index() - sample * s.channels;
    const C m = C(0.5) * mean[c];
    const C r = 2 * inverse[c];
    const double a = row.template sum<double>([](auto, C, C dy) { return dy; });
    const double b =
        row.template sum<double>([=](auto, C x, C dy) { return dy * ((C(0.5) * x - m) * r); });
    if (!row.leader()) return;
    sum_dy[c * s.samples + sample] = a;
    sum_dy_x[c * s.samples + sample] = b;
  }
};

template <class C>
struct MergeSums {
  C* sum_dy;
  C* sum_dy_x;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double a = row.template sum<double>([](auto, double a, double) { return a; });
    const double b = row.template sum<double>([](auto, double, double b) { return b; });
    if (!row.leader()) return;
    sum_dy[row.index()] = static_cast<C>(a);
    sum_dy_x[row.index()] = static_cast<C>(b);
  }
};

template <class T>
struct SumTerms {
  using C = Compute<T>;
  const T* x;
  const T* dy;
  const C* mean;
  const C* inverse;
  __device__ void operator()(std::int64_t i, std::int64_t c, C (&term)[2]) const {
    const C g = widen(dy[i]);
    term[0] = g;
    term[1] = g * ((C(0.5) * widen(x[i]) - C(0.5) * mean[c]) * (2 * inverse[c]));
  }
};

template <class C>
struct ColumnSums {
  C* sum_dy;
  C* sum_dy_x;
  __device__ void operator()(std::int64_t c, const double (&sum)[2]) const {
    sum_dy[c] = static_cast<C>(sum[0]);
    sum_dy_x[c] = static_cast<C>(sum[1]);
  }
};

// dx = scale · (dy − a − b · (x − μ))
template <class T, bool single>
struct InputGradient {
  using C = Compute<T>;
  struct Channel {
    C mean, scale, a, b;  // half, once, once, twice
  };
  std::int64_t channels;
  C over_count;  // 1 / m in training, else 0
  const C* mean;
  const C* inverse;
  const T* weight;  // or null
  const C* sum_dy;
  const C* sum_dy_x;
  T* dx;

  __device__ Channel channel(std::int64_t c) const {
    Channel k{C(0.5) * mean[c], inverse[c] * (weight ? widen(weight[c]) : C(1)), 0, 0};
    if (over_count != 0) {
      k.a = sum_dy[c] * over_count;
      k.b = sum_dy_x[c] * (2 * inverse[c]) * over_count;
    }
    return k;
  }
  template <class Row>
  __device__ void operator()(Row& row) const {
    const Channel own = single ? Channel{} : channel(row.index() % channels);
    row.write(dx, [&](auto c, C x, C dy) {
      const Channel k = single ? channel(c) : own;
      return k.scale * (dy - k.a - k.b * (C(0.5) * x - k.mean));
    });
  }
};

// How the maps see x: a row is a plane, or a sample when planes are single values.
RowLayout map_layout(const Planes& s) {
  if (s.plane == 1) return {s.samples, s.channels};
  return {s.samples * s.channels, s.plane};
}

template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}

}  // namespace
}  // namespace gpu

void gpu::batch_norm_statistics(const Tensor& x, const Planes& s, const BatchNormOptions& options,
                                Tensor& running_mean, Tensor& running_var, Tensor& mean,
                                Tensor& inverse) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const auto with = [&](auto kind) {
      using R = decltype(kind);
      statistics<T, R>(
          x, s,
          {static_cast<double>(s.count()), options.momentum, options.eps, mean.data<C>(),
           inverse.data<C>(), running_mean.data<R>(), running_var.data<R>()});
    };
    if (running_mean.dtype() == x.dtype()) return with(T{});
    with(float{});
  });
}

void gpu::batch_norm_running(const Tensor& running_mean, const Tensor& running_var, double eps,
                             Tensor& mean, Tensor& inverse) {
  visit<float, double>(mean.dtype(), op, [&](auto zero) {
    using C = decltype(zero);
    visit<float, double, bf16>(running_mean.dtype(), op, [&](auto kind) {
      using R = decltype(kind);
      const std::int64_t channels = mean.numel();
      launch(op, running_kernel<C, R>,
             dim3(static_cast<unsigned>(divide_up<std::int64_t>(channels, 128))), 128, 0,
             running_mean.data<R>(), running_var.data<R>(), eps, channels, mean.data<C>(),
             inverse.data<C>());
    });
  });
}

void gpu::batch_norm_apply(const Tensor& x, const Planes& s, const Tensor& mean,
                           const Tensor& inverse, const Tensor& weight, const Tensor& bias,
                           Tensor& y) {
  if (x.numel() == 0) return;
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const auto go = [&]<bool single>() {
      const Apply<T, single> body{s.channels,
                                  mean.data<C>(),
                                  inverse.data<C>(),
                                  data_or_null<T>(weight),
                                  data_or_null<T>(bias),
                                  y.data<T>()};
      stream_rows<T>(op, body, map_layout(s), y.data<T>(), x.data<T>());
    };
    s.plane == 1 ? go.template operator()<true>() : go.template operator()<false>();
  });
}

void gpu::batch_norm_sums(const Tensor& x, const Tensor& dy, const Planes& s, const Tensor& mean,
                          const Tensor& inverse, Tensor& sum_dy, Tensor& sum_dy_x) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    C* a = sum_dy.data<C>();
    C* b = sum_dy_x.data<C>();
    if (s.plane == 1) {
      columns<C, 2>(op, SumTerms<T>{x.data<T>(), dy.data<T>(), mean.data<C>(), inverse.data<C>()},
                    ColumnSums<C>{a, b}, 1, s.samples, s.channels, x.device());
      return;
    }
    Tensor partial = empty({2, s.channels, s.samples}, {Dtype::f64, x.device()});
    double* first = partial.data<double>();
    double* second = first + s.channels * s.samples;
    keep_rows<T>(op, PlaneSums<T>{s, mean.data<C>(), inverse.data<C>(), first, second},
                 s.samples * s.channels, s.plane, nullptr, x.data<T>(), dy.data<T>());
    stream_rows<double>(op, MergeSums<C>{a, b}, {s.channels, s.samples}, nullptr,
                        static_cast<const double*>(first), static_cast<const double*>(second));
  });
}

void gpu::batch_norm_backward(const Tensor& x, const Tensor& dy, const Planes& s,
                              const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                              const Tensor& sum_dy, const Tensor& sum_dy_x, bool training,
                              Tensor& dx) {
  if (x.numel() == 0) return;
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const C over_count = training ? C(1) / static_cast<C>(s.count()) : C(0);
    const auto go = [&]<bool single>() {
      const InputGradient<T, single> body{s.channels,
                                          over_count,
                                          mean.data<C>(),
                                          inverse.data<C>(),
                                          data_or_null<T>(weight),
                                          sum_dy.data<C>(),
                                          sum_dy_x.data<C>(),
                                          dx.data<T>()};
      stream_rows<T>(op, body, map_layout(s), dx.data<T>(), x.data<T>(), dy.data<T>());
    };
    s.plane == 1 ? go.template operator()<true>() : go.template operator()<false>();
  });
}

}  // namespace ebb
