// The weight and bias gradients on the CPU: columns (channel, tap) × filters in registers, summed
// over pixels.
#include "ebb/ops/convolution/cpu_stage.h"

namespace ebb {
namespace {

using namespace cpu::direct;
using cpu::lanes;
using cpu::Packet;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of SIMD types as template arguments
// dw[column][filter] += Σ over rows × cols pixels of x[column][pixel] · dy[pixel][filter]
template <class T, int vectors, int columns>
void gradient_tile(const T* const* x, std::int64_t row_step, const T* dy, std::int64_t rows,
                   std::int64_t cols, T* dw) {
  using namespace Eigen::internal;
  using P = Packet<T>;
  constexpr int n = lanes<T>;
  P sum[columns][vectors];
#pragma GCC unroll 16
  for (int k = 0; k < columns; ++k)
    for (int v = 0; v < vectors; ++v) sum[k][v] = pset1<P>(T(0));
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* at[columns];
#pragma GCC unroll 16
    for (int k = 0; k < columns; ++k) at[k] = x[k] + i * row_step;
    for (std::int64_t j = 0; j < cols; ++j, dy += vectors * n) {
      P g[vectors];
      for (int v = 0; v < vectors; ++v) g[v] = ploadu<P>(dy + v * n);
#pragma GCC unroll 16
      for (int k = 0; k < columns; ++k) {
        const P pixel = pset1<P>(at[k][j]);
        for (int v = 0; v < vectors; ++v) sum[k][v] = pmadd(pixel, g[v], sum[k][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < columns; ++k)
    for (int v = 0; v < vectors; ++v) {
      T* to = dw + (k * vectors + v) * n;
      pstoreu(to, padd(ploadu<P>(to), sum[k][v]));
    }
}

// The same for a single filter, dy [pixel], vectors along the row, and half and quarter ones.
template <class T, int columns>
void gradient_dots(const T* const* x, std::int64_t row_step, const T* dy, std::int64_t rows,
                   std::int64_t cols, T* dw) {
  using namespace Eigen::internal;
  using P = Packet<T>;
  using Half = typename unpacket_traits<P>::half;
  using Quarter = typename unpacket_traits<Half>::half;
  P sum[columns];
  Half half[columns];
  Quarter quarter[columns];
  T single[columns] = {};
  for (P& v : sum) v = pset1<P>(T(0));
  for (Half& v : half) v = pset1<Half>(T(0));
  for (Quarter& v : quarter) v = pset1<Quarter>(T(0));
  for (std::int64_t i = 0; i < rows; ++i, dy += cols) {
    std::int64_t j = 0;
    const auto add = [&]<class V>(V* sums) {
      const V g = ploadu<V>(dy + j);
      for (int k = 0; k < columns; ++k)
        sums[k] = pmadd(g, ploadu<V>(x[k] + i * row_step + j), sums[k]);
      j += unpacket_traits<V>::size;
    };
    while (j + unpacket_traits<P>::size <= cols) add(sum);
    if (j + unpacket_traits<Half>::size <= cols) add(half);
    if (j + unpacket_traits<Quarter>::size <= cols) add(quarter);
    for (; j < cols; ++j)
      for (int k = 0; k < columns; ++k) single[k] += dy[j] * x[k][i * row_step + j];
  }
  for (int k = 0; k < columns; ++k)
    dw[k] += (predux(sum[k]) + predux(half[k])) + (predux(quarter[k]) + single[k]);
}

// Registers of filters: 0 stands for dots along the rows.
template <class T>
int gradient_vectors(std::int64_t filters) {
  if (few<T>(filters)) return 0;
  if (wide && filters > 2 * lanes<T>) return 4;
  return filters > lanes<T> ? 2 : 1;
}

template <class T, int vectors>
void gradient_columns(const T* const* x, std::int64_t columns, std::int64_t row_step, const T* dy,
                      std::int64_t rows, std::int64_t cols, T* dw) {
  constexpr int most = vectors == 4 ? 6 : wide ? 9 : 5;
  static constexpr auto table = []<int... k>(std::integer_sequence<int, k...>) {
    if constexpr (vectors == 0)
      return std::array{&gradient_dots<T, k + 1>...};
    else
      return std::array{&gradient_tile<T, vectors, k + 1>...};
  }
  (std::make_integer_sequence<int, most>{});
  constexpr std::int64_t width = std::max(1, vectors * lanes<T>);
  const std::int64_t tiles = (columns + most - 1) / most;
  for (std::int64_t k = 0; k < tiles; ++k) {
    const std::int64_t first = columns * k / tiles;
    const std::int64_t count = columns * (k + 1) / tiles - first;
    table[static_cast<size_t>(count - 1)](x + first, row_step, dy, rows, cols, dw + first * width);
  }
}

#pragma GCC diagnostic pop

// Images are summed in fixed blocks, each by one thread, and the blocks in order.
template <class T>
struct WeightGradient {
  const Conv2dSize& z;
  const Tensor& x;
  const Tensor& dy;
  Window window = forward_window(z, true);
  int vectors = gradient_vectors<T>(window.sum.filters);
  std::int64_t width = std::max<std::int64_t>(1, vectors* lanes<T>);  // filters in a block
  std::int64_t blocks = (window.sum.filters + width - 1) / width;     // of filters, in a group
  std::int64_t columns = window.sum.terms();

  // One image, one group, filters first … first + width: adds to dw [column][filter].
  void add_image(std::int64_t n, std::int64_t g, std::int64_t first, T* buffer, T* turned, T* dw);
  void add_rows(const T* in, const T* dy_rows, std::int64_t filters, std::int64_t rows, T* turned,
                T* dw);
  std::int64_t strip() const {
    return strip_rows(z.p, shares, window.sum.channels * window.phases * window.width,
                      window.row_stride, window.above);
  }
};

template <class T>
void WeightGradient<T>::add_rows(const T* in, const T* dy_rows, std::int64_t filters,
                                 std::int64_t rows, T* turned, T* dw) {
  std::vector<const T*> at;
  for (std::int64_t c = 0; c < window.sum.channels; ++c)
    for (const std::int64_t tap : window.sum.taps) at.push_back(in + c * window.sum.plane + tap);
  const std::int64_t parts = (z.q + chunk_pixels - 1) / chunk_pixels;
  const std::int64_t rows_at_once = parts > 1 ? 1 : chunk_pixels / z.q;
  for (std::int64_t i = 0; i < rows; i += rows_at_once) {
    const std::int64_t height = std::min(rows_at_once, rows - i);
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t left = z.q * part / parts, right = z.q * (part + 1) / parts;
      const T* from = dy_rows + i * z.q + left;
      const std::int64_t pixels = height * (right - left);
      if (vectors > 0) {
        if (filters < width) std::fill_n(turned, pixels * width, T(0));
        transpose(from, z.p * z.q, filters, pixels, turned, width);
        from = turned;
      }
      const auto add = vectors == 4   ? gradient_columns<T, 4>
                       : vectors == 2 ? gradient_columns<T, 2>
                       : vectors == 1 ? gradient_columns<T, 1>
                                      : gradient_columns<T, 0>;
      add(at.data(), columns, window.sum.row_step, from, height, right - left, dw);
      for (const T*& p : at) p += right - left;
    }
    for (const T*& p : at) p += height * window.sum.row_step - z.q;
  }
}

template <class T>
void WeightGradient<T>::add_image(std::int64_t n, std::int64_t g, std::int64_t first, T* buffer,
                                  T* turned, T* dw) {
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
template <class T>
void add_parts(const WeightGradient<T>& shape, const T* partial, std::int64_t parts,
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

template <class T>
void weight_gradient(const Conv2dSize& z, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const WeightGradient<T> shape{z, x, dy};
  const std::int64_t block = shape.columns * shape.width;  // elements
  const std::int64_t blocks = z.options.groups * shape.blocks;
  constexpr std::int64_t most_partial = std::int64_t{1} << 22;  // elements of all partial sums
  const std::int64_t enough = (shares + blocks - 1) / std::max<std::int64_t>(1, blocks);
  const std::int64_t parts =
      std::clamp<std::int64_t>(most_partial / std::max<std::int64_t>(1, blocks * block), 1,
                               std::clamp<std::int64_t>(z.n, 1, std::max<std::int64_t>(1, enough)));
  Tensor partial = zeros({parts, blocks, block}, x.options());
  parallel_for(parts * blocks, grain(z, parts * blocks), [&](std::int64_t begin, std::int64_t end) {
    WeightGradient<T> own = shape;
    const std::int64_t row = own.window.sum.channels * own.window.phases * own.window.width;
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
  const std::int64_t plane = dy.size(2) * dy.size(3);
  const std::int64_t worth = (1 << 15) / std::max<std::int64_t>(1, dy.size(0) * plane);
  parallel_for(dy.size(1), worth, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      double sum = 0;
      for (std::int64_t n = 0; n < dy.size(0); ++n)
        sum += cpu::array(dy.data<T>() + (n * dy.size(1) + k) * plane, plane).sum();
      db.data<T>()[k] = static_cast<T>(sum);
    }
  });
}

}  // namespace

void cpu::direct::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy,
                                  Tensor& dw) {
  visit<float, double>(dy.dtype(), "conv2d", [&](auto zero) {
    ebb::weight_gradient<decltype(zero)>(flattened(size), x, dy, dw);
  });
}

void cpu::direct::bias_gradient(const Tensor& dy, Tensor& db) {
  visit<float, double>(dy.dtype(), "conv2d",
                       [&](auto zero) { ebb::bias_gradient<decltype(zero)>(dy, db); });
}

}  // namespace ebb
