#include "ebb/ops/map.cuh"
#include "ebb/ops/reduction/mse_loss.h"
#include "ebb/ops/slices.cuh"

namespace ebb {
namespace gpu {
namespace {

struct SquaredDifference {
  template <class C>
  __device__ C operator()(C x, C t) const {
    return (x - t) * (x - t);
  }
};

template <class T>
struct TotalLoss {
  double factor;
  T* y;
  __device__ void operator()(std::int64_t, double total) const {
    *y = narrow<T>(static_cast<Compute<T>>(factor * total));
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
    if (each)
      return map<T>("mse_loss", SquaredDifference{}, n, y.data<T>(), x.data<T>(), target.data<T>());
    sum_slices<T>("mse_loss", SquaredDifference{}, TotalLoss<T>{factor, y.data<T>()}, 1, n,
                  x.device(), x.data<T>(), target.data<T>());
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
