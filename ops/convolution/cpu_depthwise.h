// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's convolution of channels by themselves where their planes fit the second-level cache: as
// many of them side by side (side_by_side.h) as a register has lanes, padded with zeros, so that
// every tap of every output is one multiplication of registers.
#pragma once
#include <array>
#include <utility>

#include "ebb/ops/convolution/cpu_stage.h"

namespace ebb::cpu {

template <class T>
class Depthwise {
 public:
  explicit Depthwise(const Conv2dSize& z) : z_(z) {
    for (std::int64_t r = 0; r < z.r; ++r)
      for (std::int64_t s = 0; s < z.s; ++s)
        taps_.push_back(r * z.options.dilation.h * w_ + s * z.options.dilation.w);
  }

  static bool fits(const Conv2dSize& z) {
    constexpr std::int64_t most = 12000;      // registers of a plane, padded too, and of its result
    constexpr std::int64_t most_taps = 1024;  // rounding stays small in sums one after another
    const Pair p = z.options.padding;
    return z.n > 0 && z.options.groups == z.c && z.k == z.c && z.c >= lanes<T> / 2 && p.h < most &&
           p.w < most && z.h * z.w <= most && z.r * z.s <= most_taps &&
           z.h * z.w + (z.h + 2 * p.h) * (z.w + 2 * p.w) + z.p * z.q <= most;
  }

  void forward(const T* x, const T* w, const T* b, T* y, bool turned = false) const {
    for_channels(z_.n, [&](Near& near, std::int64_t n, std::int64_t c, std::int64_t count) {
      side_by_side(w + c * taps(), taps(), count, near.w.data());
      if (turned) std::ranges::reverse(near.w);
      if (b) side_by_side(b + c, 1, count, near.bias.data());
      load_padded(x + (n * z_.c + c) * z_.h * z_.w, count, near);
      const V bias = b ? near.bias[0] : V(0);
      for (std::int64_t p = 0; p < z_.p; ++p)
        in_parts(z_.q, [&]<int many>(std::int64_t q) { add_taps<many>(near, bias, p, q); });
      row_by_row(near.y.data(), outputs(), count, y + (n * z_.k + c) * outputs());
    });
  }

  // Without strides the correlation of dy with the kernel turned by 180°.
  void input_gradient(const T* w, const T* dy, T* dx) const {
    const auto& o = z_.options;
    const Pair rest{(z_.r - 1) * o.dilation.h - o.padding.h,
                    (z_.s - 1) * o.dilation.w - o.padding.w};
    const Conv2dSize back{z_.n, z_.k, z_.p, z_.q, z_.c,
                          z_.r, z_.s, z_.h, z_.w, {1, rest, o.dilation, o.groups}};
    if (o.stride.h * o.stride.w == 1 && rest.h >= 0 && rest.w >= 0 && fits(back))
      return Depthwise(back).forward(dy, w, nullptr, dx, true);
    for_channels(z_.n, [&](Near& near, std::int64_t n, std::int64_t c, std::int64_t count) {
      side_by_side(w + c * taps(), taps(), count, near.w.data());
      side_by_side(dy + (n * z_.k + c) * outputs(), outputs(), count, near.y.data());
      std::ranges::fill(near.x, V(0));
      for_outputs(0, z_.p, [&](std::int64_t i, std::int64_t at) {
        const V g = near.y[static_cast<size_t>(i)];
        for (size_t t = 0; t < taps_.size(); ++t) {
          V& to = near.x[static_cast<size_t>(at + taps_[t])];
          to = to + g * near.w[t];
        }
      });
      for (std::int64_t h = 0; h < z_.h; ++h)
        std::copy_n(padded_row(near, h), z_.w, near.plane.data() + h * z_.w);
      row_by_row(near.plane.data(), z_.h * z_.w, count, dx + (n * z_.c + c) * z_.h * z_.w);
    });
  }

  // Of each image first, of some together, and of those in order, in double: they may be many.
  void weight_gradient(const T* x, const T* dy, T* dw) const {
    constexpr std::int64_t together = 16;
    for_channels(1, [&](Near& near, std::int64_t, std::int64_t c, std::int64_t count) {
      T* const own = dw + c * taps();
      std::vector<double> sums(static_cast<size_t>(count * taps()));
      for (std::int64_t first = 0; first < z_.n; first += together) {
        std::ranges::fill(near.w, V(0));
        for (std::int64_t n = first; n < std::min(z_.n, first + together); ++n)
          add_image(near, x + (n * z_.c + c) * z_.h * z_.w, dy + (n * z_.k + c) * outputs(), count);
        row_by_row(near.w.data(), taps(), count, own);
        for (size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<double>(own[i]);
      }
      for (size_t i = 0; i < sums.size(); ++i) own[i] = static_cast<T>(sums[i]);
    });
  }

 private:
  using V = Simd<T>;
  struct Near {
    std::vector<V> x, y, w, plane, bias;  // x with its padding
  };

  std::int64_t taps() const { return z_.r * z_.s; }
  std::int64_t outputs() const { return z_.p * z_.q; }
  V* padded_row(Near& near, std::int64_t h) const {
    return near.x.data() + (h + z_.options.padding.h) * w_ + z_.options.padding.w;
  }

  void load_padded(const T* x, std::int64_t count, Near& near) const {
    side_by_side(x, z_.h * z_.w, count, near.plane.data());
    for (std::int64_t h = 0; h < z_.h; ++h)
      std::copy_n(near.plane.data() + h * z_.w, z_.w, padded_row(near, h));
  }

  // Outputs q, q + 1, … of row p: their sums need not wait for each other.
  template <int many>
  void add_taps(Near& near, V bias, std::int64_t p, std::int64_t q) const {
    const std::int64_t step = z_.options.stride.w;
    const V* x = near.x.data() + p * z_.options.stride.h * w_ + q * step;
    const V* w = near.w.data();
    std::array<V, many> all = filled<many>(bias);
    for (std::int64_t t = 0; t < taps();) {
      const std::int64_t end = std::min(taps(), t + direct::terms_in_block);
      std::array<V, many> sums = filled<many>(V(0));
      for (; t < end; ++t) {
        const V* at = x + taps_[static_cast<size_t>(t)];
        for (int k = 0; k < many; ++k) sums[k] = sums[k] + at[k * step] * w[t];
      }
      for (int k = 0; k < many; ++k) all[k] = all[k] + sums[k];
    }
    std::ranges::copy(all, near.y.data() + p * z_.q + q);
  }

  // To the weights' gradient.
  void add_image(Near& near, const T* x, const T* dy, std::int64_t count) const {
    load_padded(x, count, near);
    side_by_side(dy, outputs(), count, near.y.data());
    in_parts(taps(), [&]<int many>(std::int64_t t) { add_outputs<many>(near, t); });
  }

  // The same of the weights of taps t, t + 1, …, over all outputs.
  template <int many>
  void add_outputs(Near& near, std::int64_t t) const {
    std::array<const V*, many> x;
    for (int k = 0; k < many; ++k) x[k] = near.x.data() + taps_[static_cast<size_t>(t + k)];
    const V* dy = near.y.data();
    V* w = near.w.data() + t;
    const std::int64_t rows = std::max<std::int64_t>(1, direct::terms_in_block / z_.q);
    for (std::int64_t p = 0; p < z_.p; p += rows) {
      std::array<V, many> sums = filled<many>(V(0));
      for_outputs(p, std::min(p + rows, z_.p), [&](std::int64_t i, std::int64_t at) {
        for (int k = 0; k < many; ++k) sums[k] = sums[k] + x[k][at] * dy[i];
      });
      for (int k = 0; k < many; ++k) w[k] = w[k] + sums[k];
    }
  }

  template <int many>
  static std::array<V, many> filled(V value) {
    return [&]<int... k>(std::integer_sequence<int, k...>) {
      return std::array{(static_cast<void>(k), value)...};
    }
    (std::make_integer_sequence<int, many>());
  }

  // f<many>(first) for parts of n, all about as long: sums that need not wait for each other.
  template <class F>
  static void in_parts(std::int64_t n, F&& f) {
    constexpr int most = 8;
    const std::int64_t parts = (n + most - 1) / most;
    for (std::int64_t i = 0; i < parts; ++i) {
      const std::int64_t first = n * i / parts, many = n * (i + 1) / parts - first;
      [&]<int... k>(std::integer_sequence<int, k...>) {
        ((many == k + 1 ? f.template operator()<k + 1>(first) : void()), ...);
      }
      (std::make_integer_sequence<int, most>());
    }
  }

  // f(output, where its tap 0 is in the padded input) for those of rows p … end − 1.
  template <class F>
  void for_outputs(std::int64_t p, std::int64_t end, F&& f) const {
    for (std::int64_t i = p * z_.q; p < end; ++p)
      for (std::int64_t q = 0; q < z_.q; ++q, ++i)
        f(i, p * z_.options.stride.h * w_ + q * z_.options.stride.w);
  }

  // f(near, image, first channel, count) for each of `images` images, on all threads.
  template <class F>
  void for_channels(std::int64_t images, F&& f) const {
    const std::int64_t groups = (z_.c + lanes<T> - 1) / lanes<T>;
    const std::int64_t work = (outputs() * (taps() + 1) + z_.h * z_.w) * (z_.n / images);
    parallel_for(images * groups, 8192 / (work + 1), [&](std::int64_t begin, std::int64_t end) {
      const auto registers = [](std::int64_t n) {
        return std::vector<V>(static_cast<size_t>(n), V(0));
      };
      Near near{registers((z_.h + 2 * z_.options.padding.h) * w_), registers(outputs()),
                registers(taps()), registers(z_.h * z_.w), registers(1)};
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t c = i % groups * lanes<T>;
        f(near, i / groups, c, std::min<std::int64_t>(lanes<T>, z_.c - c));
      }
    });
  }

  Conv2dSize z_;
  std::int64_t w_ = z_.w + 2 * z_.options.padding.w;  // of a padded row
  std::vector<std::int64_t> taps_;
};

}  // namespace ebb::cpu
