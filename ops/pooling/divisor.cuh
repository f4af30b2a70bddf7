// What avg_pool2d divides a window's sum by: the elements it has, with the padding or without, or a
// number that the user gave.
#pragma once
#include "ebb/ops/pooling/any.cuh"
#include "ebb/ops/pooling/avg_pool2d.h"

namespace ebb::gpu {

// How many places of a side a window has: in the padded image or in the image.
template <class Index>
__device__ Index places_of(const AnySide<Index>& s, Index window, bool count_padding) {
  const Index begin = s.begin(window), end = min(begin + s.kernel, s.extent + s.padding);
  return count_padding ? end - begin : min(end, s.extent) - max(begin, Index{0});
}

// Of window (p, q).
template <class T, class Index>
__device__ T divisor_of(const Divisor& d, const AnySides<Index>& s, Index p, Index q) {
  return d.fixed ? static_cast<T>(d.fixed)
                 : static_cast<T>(places_of(s.down, p, d.count_padding)) *
                       static_cast<T>(places_of(s.across, q, d.count_padding));
}

// The one divisor of all windows; 0 if they differ.
inline std::int64_t divisor_of_all(const PoolSize& s, const Divisor& d) {
  const auto full = [](std::int64_t windows, std::int64_t kernel, std::int64_t stride,
                       std::int64_t padding, std::int64_t extent, bool count_padding) {
    const std::int64_t end = (windows - 1) * stride + kernel - padding;
    return count_padding ? end <= extent + padding : padding == 0 && end <= extent;
  };
  const bool one = full(s.p, s.kernel_h, s.stride_h, s.padding_h, s.h, d.count_padding) &&
                   full(s.q, s.kernel_w, s.stride_w, s.padding_w, s.w, d.count_padding);
  return d.fixed ? d.fixed : one ? s.kernel_h * s.kernel_w : 0;
}

// Each of the two makes the mean of window (p, q) of its sum: by the one divisor of all windows, as
// a reciprocal and what it leaves, rounded once and without the branch of a division; or by the
// window's own.
template <class T>
struct OneDivisor {
  static constexpr bool one = true;
  T d, reciprocal;

  explicit OneDivisor(std::int64_t divisor) : d(static_cast<T>(divisor)), reciprocal(1 / d) {}
  __device__ T operator()(T sum, int = 0, int = 0) const {
    if constexpr (std::is_same_v<T, double>) return sum / d;
    const T y = sum * reciprocal;
    const T rest = fma(-y, d, sum);
    return rest == rest ? fma(rest, reciprocal, y) : y;  // none of an infinity
  }
};
template <class T>
struct OwnDivisors {
  static constexpr bool one = false;
  AnySides<int> s;
  Divisor d;
  __device__ T operator()(T sum, int p, int q) const { return sum / divisor_of<T>(d, s, p, q); }
};

}  // namespace ebb::gpu
