// Windows of any extent, stride and dilation: an output a thread, and backward, which asks all
// windows that see an input, a few inputs.
#pragma once
#include "ebb/ops/packs.cuh"
#include "ebb/ops/pooling/places.cuh"

namespace ebb::gpu {

// Of a window of kernel² elements from (top, left) of a plane on, `none` beyond the image.
template <int kernel, class T, class Index>
__device__ void load_window(const Extents<Index>& s, const T* plane, Index top, Index left, T none,
                            T (&in)[kernel][kernel]) {
  const T* const corner = plane + (top * s.w + left);
#pragma unroll
  for (int r = 0; r < kernel; ++r)
#pragma unroll
    for (int c = 0; c < kernel; ++c) {
      const Index h = r * s.dilation_h, w = c * s.dilation_w;
      const bool there = top + h >= 0 && top + h < s.h && left + w >= 0 && left + w < s.w;
      in[r][c] = there ? corner[h * s.w + w] : none;
    }
}

// f.operator()<kernel>() with the extent of square windows, if few elements are in one, else 0.
template <class F>
void visit_kernel(const PoolSize& s, const F& f) {
  const std::int64_t kernel = s.kernel_h == s.kernel_w ? s.kernel_h : 0;
  if (kernel == 2) return f.template operator()<2>();
  if (kernel == 3) return f.template operator()<3>();
  if (kernel == 4) return f.template operator()<4>();
  if (kernel == 5) return f.template operator()<5>();
  f.template operator()<0>();
}

// Along one side of any windows; an unsigned Word divides.
template <class Index>
struct Steps {
  using Word = std::make_unsigned_t<Index>;
  Index kernel, padding, windows;
  WordDivider<Word> stride, dilation;

  // f(window, tap) for the windows that see place x, at which of their places: at most one, where
  // they are `apart`.
  template <bool apart, class F>
  __device__ void each(Index x, const F& f) const {
    const auto by = static_cast<Index>(stride.d), step = static_cast<Index>(dilation.d);
    Index last = static_cast<Index>(stride.quotient(x + padding));
    if constexpr (apart) {
      const Index tap = x + padding - last * by;
      if (tap < kernel && last < windows) f(last, tap);
    } else {
      const Index reach = x + padding - (kernel - 1) * step;
      const Index first = reach > 0 ? static_cast<Index>(stride.quotient(reach + by - 1)) : 0;
      if (last >= windows) last = windows - 1;
      for (Index i = first; i <= last; ++i) {
        const Index distance = x + padding - i * by;
        const auto tap = static_cast<Index>(dilation.quotient(distance));
        if (tap * step == distance) f(i, tap);
      }
    }
  }
};
template <class Index>
struct AnyWindows {
  Steps<Index> down, across;

  explicit AnyWindows(const PoolSize& s)
      : down{static_cast<Index>(s.kernel_h), static_cast<Index>(s.padding_h),
             static_cast<Index>(s.p), WordDivider<std::make_unsigned_t<Index>>(s.stride_h),
             WordDivider<std::make_unsigned_t<Index>>(s.dilation_h)},
        across{static_cast<Index>(s.kernel_w), static_cast<Index>(s.padding_w),
               static_cast<Index>(s.q), WordDivider<std::make_unsigned_t<Index>>(s.stride_w),
               WordDivider<std::make_unsigned_t<Index>>(s.dilation_w)} {}
};

// f.operator()<width, apart>() with how many inputs side by side a thread can have, and whether
// each is seen once at most.
template <class T, class F>
void visit_gather(const PoolSize& s, const T* image, const F& f) {
  constexpr int width = 4;
  const bool packed =
      s.w % width == 0 && reinterpret_cast<std::uintptr_t>(image) % sizeof(Pack<T, width>) == 0;
  const bool apart = s.kernel_h <= s.stride_h && s.kernel_w <= s.stride_w && s.dilation_h == 1 &&
                     s.dilation_w == 1;
  if (packed && apart) return f.template operator()<width, true>();
  if (packed) return f.template operator()<width, false>();
  if (apart) return f.template operator()<1, true>();
  f.template operator()<1, false>();
}

}  // namespace ebb::gpu
