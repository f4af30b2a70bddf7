#include "ebb/ops/elementwise/tanh.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::reciprocal;

struct Tanh {
  template <class T>
  __device__ T operator()(T x) const {
    return ::tanh(x);
  }
};

// Within 2e-7 of tanh, with neither branch nor polynomial. Below 2⁻⁶, tanh(x) is x to the nine
// bits that bf16 keeps.
struct TanhForBf16 {
  static constexpr int packs = 2;
  __device__ float operator()(float x) const {
    return fabsf(x) < 0x1p-6f ? x : 1 - 2 * reciprocal(gpu::exponential<bf16>(2 * x) + 1);
  }
};

template <class T>
using TanhFor = std::conditional_t<std::is_same_v<T, bf16>, TanhForBf16, Tanh>;

struct TanhBackward {
  template <class T>
  __device__ T operator()(T y, T dy) const {
    return dy * (1 - y * y);
  }
};

}  // namespace

void gpu::tanh(const Tensor& x, Tensor& y) { map<TanhFor>("tanh", y, x); }

void gpu::tanh_backward(const Tensor& y, const Tensor& dy, Tensor& dx) {
  map("tanh", TanhBackward{}, dx, y, dy);
}

}  // namespace ebb
