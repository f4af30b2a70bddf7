// Internal: not in <ebb/ebb.h>, not installed.
// What the CPU's pooling loops share. Small planes are worked on side by side (side_by_side.h); of
// others up to a block of outputs is worked on together, tap by tap, so that the compiler turns
// their loops into SIMD.
#pragma once
#include <algorithm>
#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/pooling/window.h"
#include "ebb/ops/simd.h"

namespace ebb::cpu {

// How many planes are side by side: many small ones, whose places in a window any T can hold.
template <class T>
std::int64_t planes_together(const PoolSize& s) {
  const bool small = s.q <= 256 && s.h * s.w <= 1024 && s.kernel_h * s.kernel_w < (1 << 24);
  return small && s.planes >= lanes<T> / 2 ? lanes<T> : 1;
}

// f(first plane, count) for up to `together` of the planes, on all threads.
template <class F>
void for_planes(const PoolSize& s, std::int64_t together, F&& f) {
  constexpr std::int64_t worth_a_thread = 1 << 15;
  parallel_for((s.planes + together - 1) / together, 1 + worth_a_thread / (together * s.h * s.w),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t plane = begin * together;
                      plane < std::min(s.planes, end * together); plane += together)
                   f(plane, std::min(together, s.planes - plane));
               });
}

// f(from, to), the n numbers `from` and the m numbers `to` being of type A: near, unless they are.
template <class A, class T, class F>
void with_numbers_as(const T* from, std::int64_t n, T* to, std::int64_t m, const F& f) {
  if constexpr (std::is_same_v<A, T>) {
    f(from, to);
  } else {
    static thread_local std::vector<A> near;
    near.resize(std::max(near.size(), static_cast<size_t>(n + m)));
    A* in = near.data();
    std::transform(from, from + n, in, [](T x) { return static_cast<A>(wide(x)); });
    f(static_cast<const A*>(in), in + n);
    std::transform(in + n, in + n + m, to, [](A y) { return T(static_cast<Wide<T>>(y)); });
  }
}

// Sums of more numbers are made in double: the roundings of thousands may all go one way.
inline constexpr std::int64_t few_terms = 32;

inline constexpr std::int64_t pool_block = 64;

// Loops over n of a block go over whole registers: what is computed beyond n is not used.
inline std::int64_t whole_registers(std::int64_t n) { return (n + 15) / 16 * 16; }

// Outputs [begin, end) of a row, those whose windows lie inside the image's width.
struct Columns {
  std::int64_t begin, end;

  // None when fewer than `worthwhile` would be worked on together.
  Columns(const PoolSize& s, std::int64_t worthwhile)
      : begin(std::min(s.q, (s.padding_w + s.stride_w - 1) / s.stride_w)), end(begin) {
    const std::int64_t last = s.w + s.padding_w - s.dilation_w * (s.kernel_w - 1) - 1;
    if (last >= 0) end = std::clamp(last / s.stride_w + 1, begin, s.q);
    if (end - begin < worthwhile) end = begin;
  }
};

// One image row as n outputs see it: at(c)[i] is the pixel of output i at tap c. Rows in steps of 2
// are split into even and odd pixels once, for all taps.
template <class T>
class RowTaps {
 public:
  // x is output 0's pixel at tap 0; from there on `left` pixels may be read.
  RowTaps(const PoolSize& s, const T* x, std::int64_t left, std::int64_t n)
      : x_(x), left_(left), n_(n), stride_(s.stride_w), dilation_(s.dilation_w) {
    const std::int64_t reach = (s.kernel_w - 1) * dilation_;
    split_ = stride_ == 2 && reach / 2 < pool_block;
    if (split_) split(whole_registers(n) + reach / 2);
  }

  // Whether what at() returns for taps up to c stays as it is.
  bool side_by_side(std::int64_t c) const {
    return split_ || (stride_ == 1 && c * dilation_ + whole_registers(n_) <= left_);
  }

  const T* at(std::int64_t c) {
    const std::int64_t first = c * dilation_;
    if (split_) return (first % 2 == 0 ? even_ : odd_) + first / 2;
    if (stride_ == 1 && first + whole_registers(n_) <= left_) return x_ + first;
    const std::int64_t whole = whole_registers(n_);
    const std::int64_t n = first + (whole - 1) * stride_ < left_ ? whole : n_;
    gather_row(x_ + first, stride_, n, even_);
    std::fill(even_ + n, even_ + whole, T(0));
    return even_;
  }

 private:
  void split(std::int64_t pairs) {
    const std::int64_t there = std::min(pairs, left_ / 2);
    for (std::int64_t i = 0; i < there; ++i) {
      even_[i] = x_[2 * i];
      odd_[i] = x_[2 * i + 1];
    }
    std::fill(even_ + there, even_ + pairs, T(0));
    std::fill(odd_ + there, odd_ + pairs, T(0));
    if (there < pairs && left_ % 2 == 1) even_[there] = x_[left_ - 1];
  }

  const T* x_;
  std::int64_t left_, n_, stride_, dilation_;
  bool split_;
  T even_[2 * pool_block];
  T odd_[2 * pool_block];
};

}  // namespace ebb::cpu
