// The maximum of a window and its place there: of equal ones the first, and NaN wins, the last.
#pragma once
#include <climits>

#include "ebb/ops/pooling/any.cuh"

namespace ebb::gpu {

template <class T>
__device__ T least() {  // −∞
  return narrow<T>(-INFINITY);
}

// The maximum so far and its place in the window; NaN wins. In PTX for f32: of tests for NaN that
// windows share, the compiler would keep the results in bits, and spend more on these than on all
// the rest.
template <class T>
struct Best {
  T value;
  int place;
  __device__ void see(T v, int at) {
    if constexpr (std::is_same_v<T, float>) {
      asm("{ .reg .pred p, q; setp.nan.f32 q, %2, %2; setp.gt.or.f32 p, %2, %0, q;"
          " selp.f32 %0, %2, %0, p; selp.s32 %1, %3, %1, p; }"
          : "+f"(value), "+r"(place)
          : "f"(v), "r"(at));
    } else if (v > value || v != v) {
      value = v;
      place = at;
    }
  }
};

// The maximum and its place among `taps`, of outputs side by side: tap(k) is element k of each of
// their windows, and `first` the first one inside the image.
template <class T, bool pairs>
struct Abreast {
  static constexpr int outputs = 1;
  Best<Compute<T>> best;

  template <int taps, class Tap>
  __device__ void see(const Tap& tap, const int (&first)[outputs]) {
    best = {widen(tap(0).v[0]), first[0]};
#pragma unroll
    for (int k = 1; k < taps; ++k) best.see(widen(tap(k).v[0]), k);
  }
  __device__ T value(int) const { return narrow<T>(best.value); }
  __device__ int place(int) const { return best.place; }
};

// Two of bf16 in a word: their maximum takes one instruction a tap, and finding it again two, as
// comparisons give a mask of 16 bits for each. Windows of which that is not true, those with NaN or
// nothing but -inf, are seen tap by tap.
template <>
struct Abreast<bf16, true> {
  static constexpr int outputs = 2;
  std::uint32_t values, places;

  template <int taps, class Tap>
  __device__ void see(const Tap& tap, const int (&first)[outputs]) {
    values = word(tap(0));
#pragma unroll
    for (int k = 1; k < taps; ++k) {
      const __nv_bfloat162 larger = __hmax2_nan(two(values), two(word(tap(k))));
      values = reinterpret_cast<const std::uint32_t&>(larger);
    }
    constexpr std::uint32_t infinity = 0x7f807f80;
    if (__hlt2_mask(__habs2(two(values)), two(infinity)) == ~0u) {
      places = (taps - 1) * 0x10001u;
#pragma unroll
      for (int k = taps - 2; k >= 0; --k)
        choose(__heq2_mask(two(word(tap(k))), two(values)), k * 0x10001u, places);
      return;
    }
    values = word(tap(0));
    places = first[0] | first[1] << 16;
#pragma unroll
    for (int k = 1; k < taps; ++k) {
      const std::uint32_t seen = word(tap(k));
      const std::uint32_t better =
          __hgt2_mask(two(seen), two(values)) | __hneu2_mask(two(seen), two(seen));
      choose(better, seen, values);
      choose(better, k * 0x10001u, places);
    }
  }
  __device__ bf16 value(int i) const {
    bf16 y;
    y.bits = static_cast<std::uint16_t>(values >> 16 * i);
    return y;
  }
  __device__ int place(int i) const { return places >> 16 * i & 0xffff; }

 private:
  __device__ static std::uint32_t word(const Pack<bf16, 2>& v) {
    return __byte_perm(v.v[0].bits, v.v[1].bits, 0x5410);
  }
  __device__ static __nv_bfloat162 two(const std::uint32_t& bits) {
    return reinterpret_cast<const __nv_bfloat162&>(bits);
  }
  __device__ static void choose(std::uint32_t mask, std::uint32_t then, std::uint32_t& otherwise) {
    otherwise = (then & mask) | (otherwise & ~mask);
  }
};

inline constexpr int nowhere = INT_MAX;  // the place of a thread that has nothing of a window

// The maximum of what a group's threads have: the first of equal ones, the last NaN.
template <int group, class T>
__device__ Best<T> group_best(const Best<T>& mine) {
  if constexpr (group == 1) return mine;
  const T value = group_reduce<group>(mine.value, Max{});
  const bool last = value != value, here = last ? mine.value != mine.value : mine.value == value;
  const int place = group_reduce<group>(!here  ? nowhere
                                        : last ? -mine.place
                                               : mine.place,
                                        [](int a, int b) { return min(a, b); });
  return {value, last ? -place : place};
}

}  // namespace ebb::gpu
