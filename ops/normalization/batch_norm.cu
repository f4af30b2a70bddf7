#include "ebb/ops/held.cuh"
#include "ebb/ops/held_alone.cuh"
#include "ebb/ops/normalization/batch_norm.h"
#include "ebb/ops/normalization/norm_rows.cuh"
#include "ebb/ops/wide_rows.cuh"

// Channels are held by a block or by groups of blocks between their sums and the map that needs
// them; or they are reduced in slices and mapped in a second read: those of images by their planes,
// those of [N,C] as columns. The maps see [N,C] as N rows whose columns are the channels.
namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "batch_norm";

// y = (x − μ) · scale + shift. x − μ of finite numbers may overflow, and times an inverse of 0 be
// NaN; (x/2 − μ/2) · 2 may not, and has the same bits.
template <class C>
struct ApplyChannel {
  C mean, scale, shift;  // half, twice
  __device__ C operator()(C x) const { return (C(0.5) * x - mean) * scale + shift; }
};

template <class T>
struct Apply {
  using C = Compute<T>;
  const T* weight;  // or null
  const T* bias;    // or null
  const C* mean;
  const C* inverse;

  struct Known {
    T weight, bias;
    __device__ ApplyChannel<C> channel(C mean, C inverse) const {
      return {C(0.5) * mean, 2 * inverse * widen(weight), widen(bias)};
    }
  };
  __device__ Known known(std::int64_t c) const {
    return {weight ? weight[c] : narrow<T>(1), bias ? bias[c] : narrow<T>(0)};
  }
  __device__ ApplyChannel<C> channel(std::int64_t c) const {
    return known(c).channel(mean[c], inverse[c]);
  }
};

// What becomes of a channel's Σ (x − first) and Σ (x − first)².
template <class T>
struct Statistics {
  using C = Compute<T>;
  const T* x;
  std::int64_t plane;
  double over_count;  // 1 / m, and 1 / (m − 1)
  double over_fewer;
  double momentum;
  double eps;
  C* mean;
  C* inverse;
  void* running_mean;
  void* running_var;
  bool alike;  // the running statistics are T, not f32

  struct Known {
    T first;
    C running_mean, running_var;
  };
  __device__ Known known(std::int64_t c) const {
    return {x[c * plane], running(running_mean, c), running(running_var, c)};
  }
  struct Moments {
    double mean, square;
  };
  __device__ Moments moments(const Known& k, const double (&sum)[2]) const {
    const double off = sum[0] * over_count;
    const double rest = sum[1] - off * sum[0];
    return {static_cast<double>(widen(k.first)) + off, rest < 0 ? 0 : rest};
  }
  __device__ C inverse_of(const Moments& m) const {
    return static_cast<C>(rsqrt(m.square * over_count + eps));
  }
  __device__ void keep(std::int64_t c, const Known& k, const Moments& m) const {
    mean[c] = static_cast<C>(m.mean);
    inverse[c] = inverse_of(m);
    move(running_mean, c, k.running_mean, m.mean);
    move(running_var, c, k.running_var, m.square * over_fewer);
  }
  __device__ void operator()(std::int64_t c, const double (&sum)[2]) const {
    const Known k = known(c);
    keep(c, k, moments(k, sum));
  }

 private:
  __device__ C running(const void* r, std::int64_t c) const {
    return alike ? widen(static_cast<const T*>(r)[c]) : static_cast<const float*>(r)[c];
  }
  __device__ void move(void* r, std::int64_t c, C old, double batch) const {
    const double now = (1 - momentum) * static_cast<double>(old) + momentum * batch;
    if (alike)
      static_cast<T*>(r)[c] = narrow<T>(static_cast<C>(now));
    else
      static_cast<float*>(r)[c] = static_cast<float>(now);
  }
};

// All of training, of a channel that is held.
template <class T>
struct Train {
  using C = Compute<T>;
  MomentsFromFirst<T> terms;
  Statistics<T> statistics;
  Apply<T> apply;

  struct Known {
    typename Statistics<T>::Known statistics;
    typename Apply<T>::Known apply;
  };
  __device__ MomentTerms<T> column(std::int64_t c) const { return terms.column(c); }
  __device__ Known known(std::int64_t c) const { return {statistics.known(c), apply.known(c)}; }
  __device__ ApplyChannel<C> channel(const Known& k, const double (&sum)[2]) const {
    const auto m = statistics.moments(k.statistics, sum);
    return k.apply.channel(static_cast<C>(m.mean), statistics.inverse_of(m));
  }
  __device__ void keep(std::int64_t c, const Known& k, const double (&sum)[2]) const {
    statistics.keep(c, k.statistics, statistics.moments(k.statistics, sum));
  }
};

// Σ dy and Σ dy · x̂, x̂ from halves as above.
template <class C>
struct GradientTerms {
  struct Column {
    C mean, inverse;

    struct Window {
      C dy, dy_x;
    };
    template <class Rows>
    __device__ void open(const Rows&, Window&) const {}
    template <class Rows>
    __device__ void add(const Rows& rows, Window& w) const {
      const C half = C(0.5) * mean;
      const C scale = 2 * inverse;
      rows.each([&](C x, C dy) {
        w.dy += dy;
        w.dy_x += dy * ((C(0.5) * x - half) * scale);
      });
    }
    __device__ void close(const Window& w, double (&sum)[2]) const {
      sum[0] += static_cast<double>(w.dy);
      sum[1] += static_cast<double>(w.dy_x);
    }
    template <class Rows>
    __device__ void add(const Rows& rows, double (&sum)[2]) const {
      Window w{};
      add(rows, w);
      close(w, sum);
    }
  };
  const C* mean;
  const C* inverse;
  __device__ Column column(std::int64_t c) const { return {mean[c], inverse[c]}; }
};

template <class T>
struct KeepSums {
  using C = Compute<T>;
  C* sum_dy;
  C* sum_dy_x;
  T* dbias;    // or null
  T* dweight;  // or null
  __device__ void operator()(std::int64_t c, const double (&sum)[2]) const {
    sum_dy[c] = static_cast<C>(sum[0]);
    sum_dy_x[c] = static_cast<C>(sum[1]);
    if (dbias) dbias[c] = narrow<T>(sum_dy[c]);
    if (dweight) dweight[c] = narrow<T>(sum_dy_x[c]);
  }
};

// dx = scale · (dy − a − b · (x − μ))
template <class C>
struct InputGradientChannel {
  C mean, scale, a, b;  // half, once, once, twice
  // In evaluation b is 0, whatever x is, be it NaN.
  __device__ C operator()(C x, C dy) const {
    return scale * (dy - a - (b == 0 ? b : b * (C(0.5) * x - mean)));
  }
};

template <class T>
struct InputGradient {
  using C = Compute<T>;
  GradientTerms<C> terms;
  KeepSums<T> sums;
  const T* weight;  // or null
  C over_count;     // 1 / m in training, else 0

  struct Known {
    C mean, inverse;
    T weight;
  };
  __device__ Known known(std::int64_t c) const {
    return {terms.mean[c], terms.inverse[c], weight ? weight[c] : narrow<T>(1)};
  }
  __device__ InputGradientChannel<C> channel(const Known& k, C sum_dy, C sum_dy_x) const {
    if (over_count == 0) sum_dy = sum_dy_x = 0;
    return {C(0.5) * k.mean, k.inverse * widen(k.weight), sum_dy * over_count,
            sum_dy_x * (2 * k.inverse) * over_count};
  }
  __device__ InputGradientChannel<C> channel(std::int64_t c) const {
    if (over_count == 0) return channel(known(c), 0, 0);
    return channel(known(c), sums.sum_dy[c], sums.sum_dy_x[c]);
  }

  // Of a channel that is held.
  __device__ typename GradientTerms<C>::Column column(std::int64_t c) const {
    return terms.column(c);
  }
  __device__ InputGradientChannel<C> channel(const Known& k, const double (&sum)[2]) const {
    return channel(k, static_cast<C>(sum[0]), static_cast<C>(sum[1]));
  }
  __device__ void keep(std::int64_t c, const Known&, const double (&sum)[2]) const { sums(c, sum); }
};

// Two sums over every channel of x….
template <class T, class Terms, class Finish, class... X>
void reduce(const Planes& s, const Terms& terms, const Finish& finish, Device device,
            const X*... x) {
  if (const WideRows w = wide_rows<T>(s.samples, s.channels, s.plane); w.rows > 0)
    return columns<T, 2>(op, WideTerms<Terms>{terms, w}, WideFinish<Finish>{finish, w},
                         {1, w.rows, w.columns}, device, x...);
  if (s.plane == 1)
    return columns<T, 2>(op, terms, finish, {1, s.samples, s.channels}, device, x...);
  channel_sums<T, 2, 0>(op, terms, finish, s.samples, s.channels, s.plane, device, x...);
}

// y = channel(x…) by its sums, in one kernel; false where that cannot be.
template <class T, class Body, class... X>
bool hold(const Planes& s, const Body& body, Device device, T* y, const X*... x) {
  if (s.plane > 1 && hold_alone<T, 2>(op, body, s.samples, s.channels, s.plane, y, x...))
    return true;
  return hold_channels<T, 2>(op, body, s.samples, s.channels, s.plane, device, y, x...);
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

}  // namespace
}  // namespace gpu

void gpu::batch_norm_train(const Tensor& x, const Planes& s, const BatchNormOptions& options,
                           const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                           Tensor& running_var, Tensor& mean, Tensor& inverse, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const T* const v = x.data<T>();
    const bool alike = running_mean.dtype() == x.dtype();
    const auto running = [&](Tensor& r) -> void* {
      return alike ? static_cast<void*>(r.data<T>()) : r.data<float>();
    };
    const auto n = static_cast<double>(s.count());
    const Train<T> body{
        {v, s.plane},
        {v, s.plane, 1 / n, 1 / (n - 1), options.momentum, options.eps, mean.data<C>(),
         inverse.data<C>(), running(running_mean), running(running_var), alike},
        {data_or_null<T>(weight), data_or_null<T>(bias), mean.data<C>(), inverse.data<C>()}};
    if (hold<T>(s, body, x.device(), y.data<T>(), v)) return;
    reduce<T>(s, body.terms, body.statistics, x.device(), v);
    channel_map<T, 0>(op, body.apply, s.samples, s.channels, s.plane, y.data<T>(), v);
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
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const Apply<T> body{data_or_null<T>(weight), data_or_null<T>(bias), mean.data<C>(),
                        inverse.data<C>()};
    channel_map<T, 0>(op, body, s.samples, s.channels, s.plane, y.data<T>(), x.data<T>());
  });
}

void gpu::batch_norm_backward(const Tensor& x, const Tensor& dy, const Planes& s,
                              const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                              bool training, Tensor& sum_dy, Tensor& sum_dy_x, Tensor& dbias,
                              Tensor& dweight, Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const GradientTerms<C> terms{mean.data<C>(), inverse.data<C>()};
    const KeepSums<T> sums{data_or_null<C>(sum_dy), data_or_null<C>(sum_dy_x),
                           data_or_null<T>(dbias), data_or_null<T>(dweight)};
    const C over_count = training ? C(1) / static_cast<C>(s.count()) : C(0);
    const InputGradient<T> body{terms, sums, data_or_null<T>(weight), over_count};
    const T* const v = x.data<T>();
    const T* const g = dy.data<T>();
    T* const to = data_or_null<T>(dx);
    if (sums.sum_dy && to && hold<T>(s, body, x.device(), to, v, g)) return;
    if (sums.sum_dy) reduce<T>(s, terms, sums, x.device(), v, g);
    if (to) channel_map<T, 0>(op, body, s.samples, s.channels, s.plane, to, v, g);
  });
}

}  // namespace ebb
