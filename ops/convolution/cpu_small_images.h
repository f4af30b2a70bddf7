// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's convolution of many small images: those of a block lie side by side, as pixels of a row
// do elsewhere, so that tiles (cpu_correlate.h, cpu_weight_tiles.h) are full however small an image
// is. Each pixel has its own list of what it sees, none of it padding.
#pragma once
#include "ebb/ops/convolution/cpu_correlate.h"
#include "ebb/ops/convolution/cpu_weight_tiles.h"
#include "ebb/ops/side_by_side.h"

namespace ebb::cpu {

template <class T, bool pairs>
class SmallImages {
 public:
  explicit SmallImages(const Conv2dSize& z)
      : z_(z), seen_(static_cast<size_t>(z.p * z.q)), reached_(static_cast<size_t>(z.h * z.w)) {
    for_pixels([&](std::int64_t in, std::int64_t out, std::int64_t place) {
      seen_[static_cast<size_t>(out)].push_back({in, place});
      reached_[static_cast<size_t>(in)].push_back({out, place});
    });
  }

  // Where rows are too short to fill a tile by themselves. Padding may make y large where x is not.
  static bool fits(const Conv2dSize& z) {
    return z.options.groups == 1 && z.n >= std::max<std::int64_t>(4, 3 * z.q) && z.q <= 5 &&
           z.p * z.q <= 64 && z.h * z.w <= (z.r * z.s > 1 ? 64 : 9) && z.c * z.r * z.s >= 16 &&
           !direct::few<T>(z.k) && !direct::few<T>(z.c);
  }

  void forward(const T* x, const T* w, const T* b, T* y) const {
    correlate(seen_, {z_.c, z_.k, z_.h * z_.w}, x, w, z_.c * taps(), taps(), b, y);
  }
  void input_gradient(const T* w, const T* dy, T* dx) const {
    correlate(reached_, {z_.k, z_.c, z_.p * z_.q}, dy, w, taps(), z_.c * taps(), nullptr, dx);
  }

  // Every task has some channels and a block of filters, and goes through the images in order.
  void weight_gradient(const T* x, const T* dy, T* dw) const {
    const Blocks blocks(z_.n, 1);
    const int vectors = direct::gradient_vectors<T>(z_.k, 1, 1);
    const std::int64_t width = vectors * lanes<T>, across = (z_.k + width - 1) / width;
    const std::int64_t parts = std::min(z_.c, (direct::shares + across - 1) / across);
    const Array<T> pixels = turned(x, z_.c * z_.h * z_.w, blocks),
                   rows = filter_rows(dy, vectors, blocks);
    parallel_for(across * parts, grain(across * parts), [&](auto begin, auto end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t c = z_.c * (i % parts) / parts;
        add_weights(pixels.data(), rows.data() + i / parts * width * z_.p * z_.q * z_.n, blocks,
                    vectors, i / parts * width, c, z_.c * (i % parts + 1) / parts - c, dw);
      }
    });
  }

 private:
  struct Tap {
    std::int64_t pixel, place;
  };
  using Pixels = std::vector<std::vector<Tap>>;  // what each pixel of a result sees

  // Images that lie side by side.
  struct Blocks {
    std::int64_t images, count;
    Blocks(std::int64_t n, std::int64_t least)
        : images(n), count(std::max((n + 55) / 56, std::min(least, n / 8))) {}
    std::int64_t first(std::int64_t block) const { return images * block / count; }
    std::int64_t size(std::int64_t block) const { return first(block + 1) - first(block); }
  };

  std::int64_t taps() const { return z_.r * z_.s; }
  std::int64_t grain(std::int64_t tasks) const { return direct::grain(z_, tasks); }

  // f(pixel of x, pixel of y, tap) for all that have to do with each other.
  template <class F>
  void for_pixels(F&& f) const {
    const auto& o = z_.options;
    for (std::int64_t p = 0; p < z_.p; ++p)
      for (std::int64_t q = 0; q < z_.q; ++q)
        for (std::int64_t r = 0; r < z_.r; ++r)
          for (std::int64_t s = 0; s < z_.s; ++s) {
            const std::int64_t h = p * o.stride.h + r * o.dilation.h - o.padding.h;
            const std::int64_t w = q * o.stride.w + s * o.dilation.w - o.padding.w;
            if (0 <= h && h < z_.h && 0 <= w && w < z_.w)
              f(h * z_.w + w, p * z_.q + q, r * z_.s + s);
          }
  }

  // Each block of images [image][element] becomes [element][image].
  static Array<T> turned(const T* x, std::int64_t elements, const Blocks& blocks) {
    Array<T> to(blocks.images * elements);
    parallel_for(blocks.count, 1 + (1 << 15) / (elements * blocks.size(0)),
                 [&](auto begin, auto end) {
                   for (std::int64_t b = begin; b < end; ++b) {
                     const std::int64_t at = blocks.first(b) * elements, n = blocks.size(b);
                     direct::transpose(x + at, elements, n, elements, to.data() + at, n);
                   }
                 });
    return to;
  }

  // One result of the forward pass or of the input gradient. `size` has the channels to sum over,
  // the filters to produce and the pixels of `in`.
  struct Size {
    std::int64_t channels, filters, pixels;
  };
  void correlate(const Pixels& results, const Size& size, const T* in, const T* w,
                 std::int64_t filter_step, std::int64_t channel_step, const T* b, T* out) const {
    direct::Correlation sum{size.channels, size.filters, 0, 0, taps(), {}, {}};
    const std::int64_t padded = direct::padded_filters<T>(size.filters);
    Array<T> weights(padded * sum.terms()), bias = Array<T>::Zero(padded);
    direct::pack(w, sum, filter_step, channel_step, weights.data());
    if (b) std::copy_n(b, size.filters, bias.data());
    const Blocks blocks(z_.n, direct::shares);
    const Array<T> images = turned(in, size.channels * size.pixels, blocks);
    parallel_for(blocks.count, grain(blocks.count), [&](auto begin, auto end) {
      for (std::int64_t block = begin; block < end; ++block)
        for (std::int64_t f = 0; f < size.filters; f += direct::filter_block<T>) {
          const T* from = images.data() + blocks.first(block) * size.channels * size.pixels;
          T* to = out + (blocks.first(block) * size.filters + f) * std::ssize(results);
          const auto run = direct::vectors_for<T>(size.filters - f) == 2
                               ? &SmallImages::correlate_block<2>
                               : &SmallImages::correlate_block<1>;
          (this->*run)(results, size, from, blocks.size(block), weights.data() + f * sum.terms(),
                       bias.data() + f, f, to);
        }
    });
  }

  // n images and one block of filters.
  template <int vectors>
  void correlate_block(const Pixels& results, const Size& size, const T* in, std::int64_t n,
                       const T* w, const T* bias, std::int64_t first, T* out) const {
    constexpr std::int64_t l = lanes<T>;
    const std::int64_t many = std::ssize(results),
                       tiles = (n + direct::most_pixels - 1) / direct::most_pixels;
    const std::int64_t some = std::max<std::int64_t>(1, direct::terms_in_block / taps());
    std::vector<Simd<T>> sums(static_cast<size_t>(n * vectors * many),
                              T(0));  // [image][vector][pixel]
    T* to = reinterpret_cast<T*>(sums.data());
    std::vector<std::int64_t> at, places;
    for (std::int64_t c = 0; c < size.channels; c += some)
      for (std::int64_t i = 0; i < many; ++i) {
        at.clear();
        places.clear();
        for (const Tap& tap : results[static_cast<size_t>(i)]) {
          at.push_back(tap.pixel * n);
          places.push_back(tap.place);
        }
        for (std::int64_t k = 0; k < tiles; ++k) {
          const std::int64_t j = n * k / tiles;
          direct::Tile<T> t{in + c * size.pixels * n + j,
                            size.pixels * n,
                            1,
                            std::min(some, size.channels - c),
                            at.data(),
                            places.data(),
                            std::ssize(at),
                            taps(),
                            w + c * taps() * vectors * l,
                            bias,
                            0,
                            l,
                            to + (j * vectors * many + i) * l,
                            vectors * many * l,
                            many * l};
          if (c > 0) t.add_to_out();
          direct::run_tile<T, pairs, vectors>(n * (k + 1) / tiles - j, t);
        }
      }
    for (std::int64_t j = 0; j < n; ++j)
      for (int v = 0; v < vectors; ++v)
        row_by_row(sums.data() + (j * vectors + v) * many, many,
                   std::min(l, size.filters - first - v * l),
                   out + (j * size.filters + v * l) * many);
  }

  // dy as [block of filters][block of images][pixel][image][filter]. Lanes beyond the last filter
  // repeat it and are not used.
  Array<T> filter_rows(const T* dy, int vectors, const Blocks& blocks) const {
    const std::int64_t pixels = z_.p * z_.q, width = vectors * lanes<T>;
    const std::int64_t across = (z_.k + width - 1) / width;
    Array<T> to = Array<T>::Zero(across * width * pixels * z_.n);
    parallel_for(across * blocks.count, 1 + (1 << 15) / (width * pixels * blocks.size(0)),
                 [&](auto begin, auto end) {
                   std::vector<Simd<T>> near(static_cast<size_t>(pixels), T(0));
                   for (std::int64_t item = begin; item < end; ++item) {
                     const std::int64_t f = item / blocks.count * width, b = item % blocks.count;
                     const std::int64_t n = blocks.size(b);
                     T* rows = to.data() + (f * z_.n + blocks.first(b) * width) * pixels;
                     for (std::int64_t j = 0; j < n; ++j)
                       for (std::int64_t k = f; k < std::min(f + width, z_.k); k += lanes<T>) {
                         side_by_side(dy + ((blocks.first(b) + j) * z_.k + k) * pixels, pixels,
                                      std::min<std::int64_t>(lanes<T>, z_.k - k), near.data());
                         for (std::int64_t i = 0; i < pixels; ++i)
                           near[static_cast<size_t>(i)].store(rows + (i * n + j) * width + k - f);
                       }
                   }
                 });
    return to;
  }

  void add_weights(const T* x, const T* dy, const Blocks& blocks, int vectors, std::int64_t f,
                   std::int64_t c, std::int64_t channels, T* dw) const {
    const auto add = direct::gradient_columns_for<T, pairs>(vectors);
    const std::int64_t width = vectors * lanes<T>, plane = z_.h * z_.w;
    Array<T> sums = Array<T>::Zero(taps() * channels * width), ordered(sums.size());
    std::vector<const T*> columns(static_cast<size_t>(channels));
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      const std::int64_t n = blocks.size(b);
      const T* images = x + (blocks.first(b) * z_.c + c * n) * plane;
      for (const auto& pixel : seen_) {
        for (const Tap& tap : pixel) {
          for (std::int64_t k = 0; k < channels; ++k)
            columns[static_cast<size_t>(k)] = images + (k * plane + tap.pixel) * n;
          add(columns.data(), channels, 0, 1, dy, 1, n, sums.data() + tap.place * channels * width);
        }
        dy += n * width;
      }
    }
    for (std::int64_t i = 0; i < taps() * channels; ++i)  // tap by tap, then channel by channel
      std::copy_n(sums.data() + i * width, width,
                  ordered.data() + (i % channels * taps() + i / channels) * width);
    direct::transpose(ordered.data(), width, channels * taps(), std::min(width, z_.k - f),
                      dw + (f * z_.c + c) * taps(), z_.c * taps());
  }

  Conv2dSize z_;
  Pixels seen_, reached_;  // by the pixels of y and of x
};

}  // namespace ebb::cpu
