#include "ebb/ops/channels.cuh"
#include "ebb/ops/normalization/batch_norm.h"

// Channels are reduced in slices and mapped in a second read: those of images by their planes,
// those of [N,C] as columns. The maps see [N,C] as N rows whose columns are the channels.
namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "batch_norm";

// What becomes of a channel's Σ (x − c) and Σ (x − c)², c its first element.
template <class T>
struct Statistics {
  using C = Compute<T>;
  const T* x;
  std::int64_t plane;
  double count;
  double momentum;
  double eps;
  C* mean;
  C* inverse;
  void* running_mean;
  void* running_var;
  bool alike;  // the running statistics are T, not f32

  __device__ void operator()(std::int64_t c, const double (&sum)[2]) const {
    const double off = sum[0] / count;
    const double rest = sum[1] - off * sum[0];
    const double m = static_cast<double>(widen(x[c * plane])) + off;
    const double square = rest < 0 ? 0 : rest;
    mean[c] = static_cast<C>(m);
    inverse[c] = static_cast<C>(1 / sqrt(square / count + eps));
    alike ? move<T>(c, m, square / (count - 1)) : move<float>(c, m, square / (count - 1));
  }
  template <class R>
  __device__ void move(std::int64_t c, double m, double var) const {
    move(static_cast<R*>(running_mean)[c], m);
    move(static_cast<R*>(running_var)[c], var);
  }
  template <class R>
  __device__ void move(R& running, double batch) const {
    const double old = static_cast<double>(widen(running));
    running = narrow<R>(static_cast<Compute<R>>((1 - momentum) * old + momentum * batch));
  }
};

// Σ dy and Σ dy · x̂. (x/2 − μ/2) · 2 may not overflow where x − μ of finite numbers may.
template <class C>
struct GradientTerms {
  struct Column {
    C mean, scale;  // half, twice
    template <class Rows>
    __device__ void add(const Rows& rows, double (&sum)[2]) const {
      C a = 0;
      C b = 0;
      rows.each([&](C x, C dy) {
        a += dy;
        b += dy * ((C(0.5) * x - mean) * scale);
      });
      sum[0] += static_cast<double>(a);
      sum[1] += static_cast<double>(b);
    }
  };
  const C* mean;
  const C* inverse;
  __device__ Column column(std::int64_t c) const { return {C(0.5) * mean[c], 2 * inverse[c]}; }
};

template <class C>
struct KeepSums {
  C* sum_dy;
  C* sum_dy_x;
  __device__ void operator()(std::int64_t c, const double (&sum)[2]) const {
    sum_dy[c] = static_cast<C>(sum[0]);
    sum_dy_x[c] = static_cast<C>(sum[1]);
  }
};

// Two sums over every channel of x….
template <class T, class Terms, class Finish, class... X>
void reduce(const Planes& s, const Terms& terms, const Finish& finish, Device device,
            const X*... x) {
  if (s.plane == 1)
    return columns<T, 2>(op, terms, finish, {1, s.samples, s.channels}, device, x...);
  channel_sums<T, 2, 0>(op, terms, finish, s.samples, s.channels, s.plane, device, x...);
}

// y = channel(x…)
template <class T, class Body, class... X>
void map(const Planes& s, const Body& body, T* y, const X*... x) {
  if (s.plane == 1) return column_map<T>(op, body, s.samples, s.channels, y, x...);
  channel_map<T, 0>(op, body, s.samples, s.channels, s.plane, y, x...);
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
template <class T>
struct Apply {
  using C = Compute<T>;
  struct Channel {
    C mean, scale, shift;  // half, twice
    __device__ C operator()(C x) const { return (C(0.5) * x - mean) * scale + shift; }
  };
  const C* mean;
  const C* inverse;
  const T* weight;  // or null
  const T* bias;    // or null

  __device__ Channel channel(std::int64_t c) const {
    return {C(0.5) * mean[c], 2 * inverse[c] * (weight ? widen(weight[c]) : C(1)),
            bias ? widen(bias[c]) : C(0)};
  }
};

// dx = scale · (dy − a − b · (x − μ))
template <class T>
struct InputGradient {
  using C = Compute<T>;
  struct Channel {
    C mean, scale, a, b;  // half, once, once, twice
    __device__ C operator()(C x, C dy) const { return scale * (dy - a - b * (C(0.5) * x - mean)); }
  };
  C over_count;  // 1 / m in training, else 0
  const C* mean;
  const C* inverse;
  const T* weight;  // or null
  const C* sum_dy;
  const C* sum_dy_x;

  __device__ Channel channel(std::int64_t c) const {
    Channel k{C(0.5) * mean[c], inverse[c] * (weight ? widen(weight[c]) : C(1)), 0, 0};
    if (over_count != 0) {
      k.a = sum_dy[c] * over_count;
      k.b = sum_dy_x[c] * (2 * inverse[c]) * over_count;
    }
    return k;
  }
};

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
    const T* const v = x.data<T>();
    const bool alike = running_mean.dtype() == x.dtype();
    const auto running = [&](Tensor& r) -> void* {
      return alike ? static_cast<void*>(r.data<T>()) : r.data<float>();
    };
    const Statistics<T> result{v,
                               s.plane,
                               static_cast<double>(s.count()),
                               options.momentum,
                               options.eps,
                               mean.data<C>(),
                               inverse.data<C>(),
                               running(running_mean),
                               running(running_var),
                               alike};
    reduce<T>(s, MomentsFromFirst<T>{v, s.plane}, result, x.device(), v);
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
    const Apply<T> body{mean.data<C>(), inverse.data<C>(), data_or_null<T>(weight),
                        data_or_null<T>(bias)};
    map<T>(s, body, y.data<T>(), x.data<T>());
  });
}

void gpu::batch_norm_sums(const Tensor& x, const Tensor& dy, const Planes& s, const Tensor& mean,
                          const Tensor& inverse, Tensor& sum_dy, Tensor& sum_dy_x) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    reduce<T>(s, GradientTerms<C>{mean.data<C>(), inverse.data<C>()},
              KeepSums<C>{sum_dy.data<C>(), sum_dy_x.data<C>()}, x.device(), x.data<T>(),
              dy.data<T>());
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
    const InputGradient<T> body{over_count,        mean.data<C>(),
                                inverse.data<C>(), data_or_null<T>(weight),
                                sum_dy.data<C>(),  sum_dy_x.data<C>()};
    map<T>(s, body, dx.data<T>(), x.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
