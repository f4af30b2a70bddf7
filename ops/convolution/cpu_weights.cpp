// The weight and bias gradients on the CPU.
#include <numeric>

#include "ebb/ops/convolution/cpu_weight_tiles.h"
#include "ebb/ops/sums.h"

namespace ebb {
namespace {

using namespace cpu::direct;
using cpu::lanes;
// Images are summed in fixed blocks, each by one thread, and the blocks in order.
template <class T, bool pairs>
struct WeightGradient {
  const Conv2dSize& z;
  const Tensor& x;
  const Tensor& dy;
  Window window = forward_window(z, false);
  int vectors = gradient_vectors<T>(window.sum.filters, z.q, window.sum.step);
  std::int64_t width = std::max<std::int64_t>(1, vectors* lanes<T>);  // filters in a block
  std::int64_t blocks = (window.sum.filters + width - 1) / width;     // of filters, in a group
  std::int64_t columns = window.sum.terms();

  // One image, one group, filters first … first + width: adds to dw [column][filter].
  void add_image(std::int64_t n, std::int64_t g, std::int64_t first, T* buffer, T* turned, T* dw);
  void add_rows(const T* in, const T* dy_rows, std::int64_t filters, std::int64_t rows, T* turned,
                T* dw);
  std::int64_t strip() const {
    return strip_rows(z.p, shares, window.sum.channels * window.width, window.row_stride,
                      window.above);
  }
};

template <class T, bool pairs>
void WeightGradient<T, pairs>::add_rows(const T* in, const T* dy_rows, std::int64_t filters,
                                        std::int64_t rows, T* turned, T* dw) {
  std::vector<const T*> at;
  for (std::int64_t c = 0; c < window.sum.channels; ++c)
    for (const std::int64_t tap : window.sum.taps) at.push_back(in + c * window.sum.plane + tap);
  const std::int64_t parts = (z.q + chunk_pixels - 1) / chunk_pixels;
  const std::int64_t rows_at_once = parts > 1 ? 1 : chunk_pixels / z.q;
  const std::int64_t chunks = (rows + rows_at_once - 1) / rows_at_once;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t i = rows * chunk / chunks, height = rows * (chunk + 1) / chunks - i;
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t left = z.q * part / parts, right = z.q * (part + 1) / parts;
      const T* from = dy_rows + i * z.q + left;
      const std::int64_t pixels = height * (right - left);
      if (vectors > 0) {
        if (filters < width) std::fill_n(turned, pixels * width, T(0));
        transpose(from, z.p * z.q, filters, pixels, turned, width);
        from = turned;
      }
      const auto add = gradient_columns_for<T, pairs>(vectors);
      add(at.data(), columns, window.sum.row_step, window.sum.step, from, height, right - left, dw);
      for (const T*& p : at) p += (right - left) * window.sum.step;
    }
    for (const T*& p : at) p += height * window.sum.row_step - z.q * window.sum.step;
  }
}

template <class T, bool pairs>
void WeightGradient<T, pairs>::add_image(std::int64_t n, std::int64_t g, std::int64_t first,
                                         T* buffer, T* turned, T* dw) {
  const std::int64_t most = strip();
  const std::int64_t filter = g * window.sum.filters + first;
  const T* image = x.data<T>() + (n * z.c + g * window.sum.channels) * z.h * z.w;
  const T* dy_plane = dy.data<T>() + (n * z.k + filter) * z.p * z.q;
  const std::int64_t filters = std::min(width, window.sum.filters - first);
  std::vector<T> of_strip(static_cast<size_t>(most < z.p ? columns * width : 0));
  for (std::int64_t row = 0; row < z.p; row += most) {
    const std::int64_t rows = std::min(most, z.p - row);
    const T* in = windowed(window, z, image, row, rows, buffer);
    const T* from = dy_plane + row * z.q;
    if (most >= z.p) return add_rows(in, from, filters, rows, turned, dw);
    std::ranges::fill(of_strip, T(0));  // thousands of sums in one would lose digits
    add_rows(in, from, filters, rows, turned, of_strip.data());
    cpu::array(dw, columns * width) += cpu::array(of_strip.data(), columns * width);
  }
}

// dw [filter][column] = Σ of the parts [blocks][column][filter] in their order, some columns at a
// time.
template <class T, bool pairs>
void add_parts(const WeightGradient<T, pairs>& shape, const T* partial, std::int64_t parts,
               std::int64_t blocks, T* dw) {
  constexpr std::int64_t some = 64;
  const std::int64_t filters = shape.window.sum.filters, columns = shape.columns;
  const std::int64_t chunks = (columns + some - 1) / some,
                     part_size = blocks * columns * shape.width;
  const std::int64_t worth = (1 << 15) / (parts * some * shape.width) + 1;
  parallel_for(blocks * chunks, worth, [&](std::int64_t begin, std::int64_t end) {
    cpu::Array<T> sum(some * shape.width);
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t b = item / chunks, column = item % chunks * some;
      const std::int64_t count = std::min(some, columns - column), size = count * shape.width;
      const T* from = partial + (b * columns + column) * shape.width;
      sum.head(size) = cpu::array(from, size);
      for (std::int64_t part = 1; part < parts; ++part)
        sum.head(size) += cpu::array(from + part * part_size, size);
      const std::int64_t first = b % shape.blocks * shape.width;
      transpose(sum.data(), shape.width, count, std::min(shape.width, filters - first),
                dw + (b / shape.blocks * filters + first) * columns + column, columns);
    }
  });
}

template <class T, bool pairs>
void weight_gradient(const Conv2dSize& z, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const WeightGradient<T, pairs> shape{z, x, dy};
  const std::int64_t block = shape.columns * shape.width;  // elements
  const std::int64_t blocks = z.options.groups * shape.blocks;
  constexpr std::int64_t most_partial = std::int64_t{1} << 22;  // elements of all partial sums
  const std::int64_t enough = (shares + blocks - 1) / std::max<std::int64_t>(1, blocks);
  const std::int64_t parts =
      std::clamp<std::int64_t>(most_partial / std::max<std::int64_t>(1, blocks * block), 1,
                               std::clamp<std::int64_t>(z.n, 1, std::max<std::int64_t>(1, enough)));
  Tensor partial = zeros({parts, blocks, block}, x.options());
  parallel_for(parts * blocks, grain(z, parts * blocks), [&](std::int64_t begin, std::int64_t end) {
    WeightGradient<T, pairs> own = shape;
    const std::int64_t row = own.window.sum.channels * own.window.width;
    const std::int64_t staged = own.window.rows(own.strip()) * row;
    Tensor buffer = empty({own.window.in_place ? 0 : staged}, x.options());
    Tensor turned = empty({chunk_pixels * own.width}, x.options());
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t part = item / blocks, g = item % blocks / own.blocks;
      const std::int64_t first = item % own.blocks * own.width;
      for (std::int64_t n = z.n * part / parts; n < z.n * (part + 1) / parts; ++n)
        own.add_image(n, g, first, buffer.data<T>(), turned.data<T>(),
                      partial.data<T>() + item * block);
    }
  });
  add_parts(shape, partial.data<T>(), parts, blocks, dw.data<T>());
}

template <class T>
void bias_gradient(const Tensor& dy, Tensor& db) {
  const std::int64_t images = dy.size(0), filters = dy.size(1), plane = dy.size(2) * dy.size(3);
  const T* from = dy.data<T>();
  if (plane < 32) {  // too short for sums of their own
    const std::int64_t all = filters * plane;
    const auto add = [=](auto first, auto last, auto column, auto columns, double** sums) {
      cpu::add_rows(first, last, columns, sums[0],
                    [=](std::int64_t n, std::int64_t i) { return from[n * all + column + i]; });
    };
    const std::vector<double> sums = cpu::column_sums<1>(images, all, add);
    for (std::int64_t k = 0; k < filters; ++k)
      db.data<T>()[k] = static_cast<T>(
          std::accumulate(sums.begin() + k * plane, sums.begin() + (k + 1) * plane, 0.0));
    return;
  }
  const std::int64_t worth = (1 << 15) / std::max<std::int64_t>(1, images * plane);
  parallel_for(filters, worth, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      double sum = 0;
      for (std::int64_t n = 0; n < images; ++n)
        sum += cpu::array(from + (n * filters + k) * plane, plane).sum();
      db.data<T>()[k] = static_cast<T>(sum);
    }
  });
}

}  // namespace

void cpu::direct::weight_gradient(const Conv2dSize& size, bool pairs, const Tensor& x,
                                  const Tensor& dy, Tensor& dw) {
  visit_numbers(dy.dtype(), pairs, [&]<class T, bool pairs>() {
    ebb::weight_gradient<T, pairs>(flattened(size), x, dy, dw);
  });
}

void cpu::direct::bias_gradient(const Tensor& dy, Tensor& db) {
  visit<float, double>(dy.dtype(), "conv2d",
                       [&](auto zero) { ebb::bias_gradient<decltype(zero)>(dy, db); });
}

}  // namespace ebb
