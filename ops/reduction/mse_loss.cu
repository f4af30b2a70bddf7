#include "ebb/ops/map.cuh"
#include "ebb/ops/reduction/mse_loss.h"
#include "ebb/ops/rows.cuh"

namespace ebb {
namespace gpu {
namespace {

struct SquaredDifference {
  template <class C>
  __device__ C operator()(C x, C t) const {
    return (x - t) * (x - t);
  }
};

// A slice of the tensor, seen as one row.
template <class T>
struct SliceLoss {
  double* partial;

  template <class Row>
  __device__ void operator()(Row& row) const {
    using C = Compute<T>;
    const double total = row.template sum<double>([](auto, C x, C t) { return (x - t) * (x - t); });
    if (row.leader()) partial[row.index()] = total;
  }
};

template <class T>
struct TotalLoss {
  double factor;
  T* y;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double total = row.template sum<double>([](auto, double x) { return x; });
    if (row.leader()) *y = narrow<T>(static_cast<Compute<T>>(factor * total));
  }
};

template <class C>
struct EachGradient {
  C factor;
  __device__ C operator()(C x, C t, C dy) const { return factor * (x - t) * dy; }
};

template <class T>
struct OneGradient {
  using C = Compute<T>;
  C factor;
  const T* dy;
  __device__ C operator()(C x, C t) const { return factor * widen(*dy) * (x - t); }
};

}  // namespace
}  // namespace gpu

void gpu::mse_loss(const Tensor& x, const Tensor& target, double factor, bool each, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "mse_loss", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t n = x.numel();
    if (each) {
      map<T>("mse_loss", SquaredDifference{}, n, y.data<T>(), x.data<T>(), target.data<T>());
      return;
    }
    constexpr std::int64_t shortest = 16384;
    constexpr std::int64_t most_slices = 2048;
    const std::int64_t slice = divide_up(n, most_slices);
    RowLayout layout{1, n};
    layout.chunk = slice > shortest ? divide_up<std::int64_t>(slice, 8) * 8 : shortest;
    layout.slices = n == 0 ? 1 : divide_up(n, layout.chunk);
    Tensor partial = empty({layout.slices}, {Dtype::f64, x.device()});
    double* sums = partial.data<double>();
    stream_rows<T>("mse_loss", SliceLoss<T>{sums}, layout, nullptr, x.data<T>(), target.data<T>());
    stream_rows<double>("mse_loss", TotalLoss<T>{factor, y.data<T>()}, {1, layout.slices}, nullptr,
                        static_cast<const double*>(sums));
  });
}

void gpu::mse_loss_backward(const Tensor& x, const Tensor& target, const Tensor& dy, double factor,
                            bool each, Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), "mse_loss", [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const C scale = static_cast<C>(factor);
    if (each) {
      map<T>("mse_loss", EachGradient<C>{scale}, x.numel(), dx.data<T>(), x.data<T>(),
             target.data<T>(), dy.data<T>());
      return;
    }
    map<T>("mse_loss", OneGradient<T>{scale, dy.data<T>()}, x.numel(), dx.data<T>(), x.data<T>(),
           target.data<T>());
  });
}

}  // namespace ebb
