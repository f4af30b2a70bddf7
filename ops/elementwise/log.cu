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

void gpu::log(const Tensor& x, Tensor& y) { map("log", Log{}, y, x); }

void gpu::log_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  map("log", LogBackward{}, dx, x, dy);
}

}  // namespace ebb
