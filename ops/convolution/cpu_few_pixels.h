// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's convolution of an image or two with few pixels, or of a 1×1 kernel: weights are many
// beside the pixels then, and a matrix product reads them once where they lie.
//
//   y [K][pixels] = w [K][terms] · columns [terms][pixels]
//
// A term is a channel and a tap; columns are what each pixel of y sees of x. Images that the kernel
// covers are rows already: y [N][K] = x [N][terms] · wᵀ.
#pragma once
#include "ebb/core/eigen.h"
#include "ebb/core/parallel.h"
#include "ebb/ops/convolution/conv2d.h"
#include "ebb/ops/linalg/gemm.h"

namespace ebb::cpu {

template <class T>
class FewPixels {
 public:
  explicit FewPixels(const Conv2dSize& z)
      : z_(z), terms_(z.c * z.r * z.s), pixels_(z.p * z.q), columns_(in_place(z) ? 0 : size()) {}

  static bool fits(const Conv2dSize& z) {
    if (z.options.groups != 1) return false;
    return covers(z) ||
           ((z.n == 1 || z.n == 2) && z.c * z.r * z.s >= 64 && z.k >= 16 &&
            (in_place(z) || z.n * z.p * z.q <= z.k * z.options.stride.h * z.options.stride.w));
  }

  void forward(const T* x, const T* w, const T* b, T* y) {
    if (covers(z_)) return multiply<T>({1, z_.n, z_.k, terms_, false, true}, x, w, b, y);
    for (std::int64_t n = 0; n < z_.n; ++n, y += z_.k * pixels_) {
      multiply<T>({1, z_.k, pixels_, terms_}, w, columns_of(x + n * image()), nullptr, y);
      for (std::int64_t k = 0; k < z_.k && b; ++k) array(y + k * pixels_, pixels_) += b[k];
    }
  }

  void input_gradient(const T* w, const T* dy, T* dx) {
    if (covers(z_)) return multiply<T>({1, z_.n, terms_, z_.k}, dy, w, nullptr, dx);
    const GemmSize size{1, terms_, pixels_, z_.k, true};
    for (std::int64_t n = 0; n < z_.n; ++n, dy += z_.k * pixels_, dx += image()) {
      T* columns = in_place(z_) ? dx : columns_.data();
      multiply<T>(size, w, dy, nullptr, columns);
      if (!in_place(z_)) add_columns(dx);
    }
  }

  void weight_gradient(const T* x, const T* dy, T* dw) {
    if (covers(z_)) return multiply<T>({1, z_.k, terms_, z_.n, true}, dy, x, nullptr, dw);
    const GemmSize size{1, z_.k, terms_, pixels_, false, true};
    Array<T> part(z_.n > 1 ? z_.k * terms_ : 0);
    for (std::int64_t n = 0; n < z_.n; ++n) {
      const T* from = dy + n * z_.k * pixels_;
      multiply<T>(size, from, columns_of(x + n * image()), nullptr, n == 0 ? dw : part.data());
      if (n > 0) array(dw, z_.k * terms_) += part;
    }
  }

 private:
  static bool covers(const Conv2dSize& z) {
    const Pair p = z.options.padding;
    return z.p * z.q == 1 && z.r == z.h && z.s == z.w && p.h + p.w == 0;
  }
  static bool in_place(const Conv2dSize& z) {
    return z.r == 1 && z.s == 1 && z.p == z.h && z.q == z.w && z.options.padding.h == 0 &&
           z.options.padding.w == 0;
  }
  std::int64_t image() const { return z_.c * z_.h * z_.w; }
  std::int64_t size() const { return terms_ * pixels_; }

  // f(where pixels of x begin, of columns, how many) for each row of y and term of a channel that
  // lies in the image: pixels are stride.w apart in x. The rest of the columns is 0.
  template <class F>
  void for_rows(std::int64_t channel, F&& f) const {
    const auto& o = z_.options;
    std::int64_t column = channel * z_.r * z_.s * pixels_;
    for (std::int64_t r = 0; r < z_.r; ++r)
      for (std::int64_t s = 0; s < z_.s; ++s) {
        const std::int64_t left = s * o.dilation.w - o.padding.w;
        const std::int64_t begin = left < 0 ? (-left + o.stride.w - 1) / o.stride.w : 0;
        const std::int64_t end = std::min(z_.q, (z_.w - left + o.stride.w - 1) / o.stride.w);
        for (std::int64_t p = 0; p < z_.p; ++p, column += z_.q) {
          const std::int64_t h = p * o.stride.h - o.padding.h + r * o.dilation.h;
          if (0 <= h && h < z_.h && begin < end)
            f((channel * z_.h + h) * z_.w + left + begin * o.stride.w, column + begin, end - begin);
        }
      }
  }

  template <class F>
  void for_channels(F&& f) const {
    parallel_for(z_.c, 8192 / (z_.r * z_.s * pixels_ + 1), [&](auto begin, auto end) {
      for (std::int64_t c = begin; c < end; ++c) f(c);
    });
  }

  const T* columns_of(const T* x) {
    if (in_place(z_)) return x;
    columns_.setZero();
    for_channels([&](std::int64_t c) {
      for_rows(c, [&](std::int64_t from, std::int64_t to, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) columns_[to + i] = x[from + i * z_.options.stride.w];
      });
    });
    return columns_.data();
  }

  void add_columns(T* dx) const {
    for_channels([&](std::int64_t c) {
      std::fill_n(dx + c * z_.h * z_.w, z_.h * z_.w, T(0));
      for_rows(c, [&](std::int64_t to, std::int64_t from, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) dx[to + i * z_.options.stride.w] += columns_[from + i];
      });
    });
  }

  Conv2dSize z_;
  std::int64_t terms_, pixels_;
  Array<T> columns_;
};

}  // namespace ebb::cpu
