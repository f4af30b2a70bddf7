#include "ebb/ops/elementwise/log.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

struct Log {
  template <class T>
  __device__ T operator()(T x) const {
    return ::log(x);
  }
};

struct LogBackward {
  template <class T>
  __device__ T operator()(T x, T dy) const {
    return dy / x;
  }
};

}  // namespace

void gpu::log(const Tensor& x, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "log", [&](auto zero) {
    using T = decltype(zero);
    map<T>("log", Log{}, x.numel(), y.data<T>(), x.data<T>());
  });
}

void gpu::log_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "log", [&](auto zero) {
    using T = decltype(zero);
    map<T>("log", LogBackward{}, dy.numel(), dx.data<T>(), x.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
