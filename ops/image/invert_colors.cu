#include "ebb/ops/image/invert_colors.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

template <class T>
struct Inverted {
  gpu::Compute<T> max;
  __device__ gpu::Compute<T> operator()(gpu::Compute<T> x) const {
    if constexpr (std::is_same_v<T, std::uint8_t>)
      return static_cast<std::uint8_t>(x < max ? max - x : 0);
    else
      return max - x;
  }
};

}  // namespace

void gpu::invert_colors(const Tensor& x, double max, Tensor& y) {
  visit<float, double, bf16, std::uint8_t>(x.dtype(), "invert_colors", [&](auto zero) {
    using T = decltype(zero);
    map<T>("invert_colors", Inverted<T>{static_cast<Compute<T>>(max)}, x.numel(), y.data<T>(),
           x.data<T>());
  });
}

}  // namespace ebb
