// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's convolution of few pixels: weights are many beside them then, and a matrix product
// reads them once where they lie.
//
//   y [K][pixels] = w [K][terms] · columns [terms][pixels]
//
// A term is a channel and a tap; columns are what each pixel of y sees of x, in one image after
// another. Of a 1×1 kernel they are the image itself, and every image is a product. Images that the
// kernel covers are rows already: y [N][K] = x [N][terms] · wᵀ.
#pragma once
#include "ebb/core/eigen.h"
#include "ebb/ops/convolution/cpu_stage.h"
#include "ebb/ops/linalg/gemm.h"

namespace ebb::cpu {

enum class Pass { forward, input, weights };

template <class T>
class FewPixels {
 public:
  explicit FewPixels(const Conv2dSize& z)
      : z_(z),
        images_(in_place(z) ? 1 : z.n),
        terms_(z.c * z.r * z.s),
        pixels_(images_ * z.p * z.q),
        columns_(in_place(z) || covers(z) ? 0 : terms_ * pixels_),
        joined_(images_ > 1 && !covers(z) ? z.k * pixels_ : 0) {}

  static bool fits(const Conv2dSize& z, Pass pass) {
    const auto& o = z.options;
    if (o.groups != 1 || z.n == 0) return false;
    if (covers(z)) return true;
    if (in_place(z) && direct::few<T>(z.k)) return z.p * z.q >= 256;
    if (z.c * z.r * z.s < 64 || z.k < 16) return false;
    if (z.n <= 2 && in_place(z)) return true;
    const std::int64_t phases = pass == Pass::input ? o.stride.h * o.stride.w : 1;
    const bool enough = (z.n <= 2 ? 1 : 2) * z.n * z.p * z.q <= z.k * phases;
    if (pass != Pass::forward) return enough;
    constexpr double cached = 1 << 24;  // bytes: correlations copy weights, at no cost in a cache
    return enough && static_cast<double>(z.k * z.c * z.r * z.s * sizeof(T)) > cached;
  }

  void forward(const T* x, const T* w, const T* b, T* y) {
    if (covers(z_)) return multiply<T>({1, z_.n, z_.k, terms_, false, true}, x, w, b, y);
    for (std::int64_t n = 0; n < z_.n; n += images_, x += image(), y += z_.k * pixels_) {
      T* out = images_ > 1 ? joined_.data() : y;
      multiply<T>({1, z_.k, pixels_, terms_}, w, columns_of(x), nullptr, out);
      for (std::int64_t k = 0; k < z_.k && b; ++k) array(out + k * pixels_, pixels_) += b[k];
      if (images_ > 1) swap(out, z_.k, images_, y);
    }
  }

  void input_gradient(const T* w, const T* dy, T* dx) {
    if (covers(z_)) return multiply<T>({1, z_.n, terms_, z_.k}, dy, w, nullptr, dx);
    for (std::int64_t n = 0; n < z_.n; n += images_, dx += image(), dy += z_.k * pixels_) {
      T* columns = in_place(z_) ? dx : columns_.data();
      multiply<T>({1, terms_, pixels_, z_.k, true}, w, joined(dy), nullptr, columns);
      if (!in_place(z_)) add_columns(dx);
    }
  }

  void weight_gradient(const T* x, const T* dy, T* dw) {
    if (covers(z_)) return multiply<T>({1, z_.k, terms_, z_.n, true}, dy, x, nullptr, dw);
    const GemmSize size{1, z_.k, terms_, pixels_, false, true};
    Array<T> part(images_ < z_.n ? z_.k * terms_ : 0);
    for (std::int64_t n = 0; n < z_.n; n += images_, x += image(), dy += z_.k * pixels_) {
      multiply<T>(size, joined(dy), columns_of(x), nullptr, n == 0 ? dw : part.data());
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

  // to [across][down][pixels of an image] = from [down][across][…]
  void swap(const T* from, std::int64_t down, std::int64_t across, T* to) const {
    const std::int64_t size = z_.p * z_.q;
    parallel_for(down, 8192 / (across * size) + 1, [=](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t j = 0; j < across; ++j)
          std::copy_n(from + (i * across + j) * size, size, to + (j * down + i) * size);
    });
  }
  const T* joined(const T* dy) {
    if (images_ == 1) return dy;
    swap(dy, images_, z_.k, joined_.data());
    return joined_.data();
  }

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
        for (std::int64_t n = 0; n < images_; ++n)
          for (std::int64_t p = 0; p < z_.p; ++p, column += z_.q) {
            const std::int64_t h = p * o.stride.h - o.padding.h + r * o.dilation.h;
            const std::int64_t row = ((n * z_.c + channel) * z_.h + h) * z_.w;
            if (0 <= h && h < z_.h && begin < end)
              f(row + left + begin * o.stride.w, column + begin, end - begin);
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
    if (z_.options.padding.h + z_.options.padding.w > 0) columns_.setZero();
    for_channels([&](std::int64_t c) {
      for_rows(c, [&](std::int64_t from, std::int64_t to, std::int64_t n) {
        direct::move_row(x + from, z_.options.stride.w, n, columns_.data() + to, 1);
      });
    });
    return columns_.data();
  }

  void add_columns(T* dx) const {
    for_channels([&](std::int64_t c) {
      for (std::int64_t n = 0; n < images_; ++n)
        std::fill_n(dx + (n * z_.c + c) * z_.h * z_.w, z_.h * z_.w, T(0));
      for_rows(c, [&](std::int64_t to, std::int64_t from, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) dx[to + i * z_.options.stride.w] += columns_[from + i];
      });
    });
  }

  Conv2dSize z_;
  std::int64_t images_, terms_, pixels_;  // of one product
  Array<T> columns_, joined_;
};

}  // namespace ebb::cpu
