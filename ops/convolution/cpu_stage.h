// Internal: not in <ebb/ebb.h>, not installed.
// The input of a correlation on the CPU: rows of pixels, in place or staged with their padding.
//
//   out[f, i, j] = bias[f] + Σ over c, t of in[c · plane + i · row_step + j · step + taps[t]]
//                                           · w[f, c, t]
#pragma once
#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/convolution/conv2d.h"
#include "ebb/ops/side_by_side.h"

namespace ebb::cpu::direct {

// 32 SIMD registers with AVX-512, else taken to be 16.
inline constexpr bool wide = lanes<float> == 16;
inline constexpr int most_pixels = wide ? 14 : 6;
inline constexpr std::int64_t chunk_pixels = 168;  // results of a chunk stay in L1
inline constexpr std::int64_t terms_in_block =
    160;  // weights of a block too, and rounding stays small

template <class T>
inline constexpr std::int64_t filter_block = 2 * lanes<T>;

template <class T>
bool few(std::int64_t filters) {
  return 4 * filters <= lanes<T>;
}

struct Correlation {
  std::int64_t channels = 0, filters = 0;  // of one group: summed over, and produced
  std::int64_t plane = 0, row_step = 0;
  std::int64_t kernel = 0;           // weights of a filter for one channel
  std::vector<std::int64_t> taps;    // offsets in `in`
  std::vector<std::int64_t> places;  // of their weights in the kernel
  std::int64_t step = 1;             // columns of `in` between results
  bool along_rows = false;           // vectors run along rows, one filter at a time

  std::int64_t terms() const { return channels * kernel; }
  void add_tap(std::int64_t offset, std::int64_t place) {
    taps.push_back(offset);
    places.push_back(place);
  }
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of SIMD types as template arguments
// dst[j · dst_step + i] = src[i · src_step + j], i < rows, j < cols; in squares, the last of which
// overlap those before them where there is room.
template <class T>
void transpose(const T* src, std::int64_t src_step, std::int64_t rows, std::int64_t cols, T* dst,
               std::int64_t dst_step) {
  constexpr int n = lanes<T>;
  const std::int64_t height = std::min<std::int64_t>(n, rows);
  const std::int64_t width = std::min<std::int64_t>(n, cols);
  for (std::int64_t i = 0; i < rows; i += n)
    for (std::int64_t j = 0; j < cols; j += n) {
      const std::int64_t row = std::min(i, rows - height), col = std::min(j, cols - width);
      const T* from = src + row * src_step + col;
      T* to = dst + col * dst_step + row;
      if (height == n && width == n) {
        transpose_square(from, src_step, to, dst_step);
        continue;
      }
      T edge[n * n] = {}, turned[n * n];
      for (std::int64_t a = 0; a < height; ++a)
        load_up_to(from + a * src_step, width).store(edge + a * n);
      transpose_square(edge, n, turned, n);
      for (std::int64_t b = 0; b < width; ++b)
        store_up_to(Simd<T>::load(turned + b * n), to + b * dst_step, height);
    }
}

// Registers, the last overlapping the one before: rows are too short for a call of memmove.
template <class T>
void copy_row(const T* from, std::int64_t n, T* to) {
  using namespace Eigen::internal;
  constexpr int l = lanes<T>;
  if (n < l) {
    std::copy_n(from, n, to);
    return;
  }
  for (std::int64_t i = 0; i < n; i += l) {
    const std::int64_t at = std::min(i, n - l);
    pstoreu(to + at, ploadu<Packet<T>>(from + at));
  }
}

// n elements that are so far apart.
template <class T>
void move_row(const T* from, std::int64_t step, std::int64_t n, T* to, std::int64_t to_step) {
  if (to_step != 1) {
    for (std::int64_t j = 0; j < n; ++j) to[j * to_step] = from[j * step];
  } else if (step != 1) {
    gather_row(from, step, n, to);
  } else {
    copy_row(from, n, to);
  }
}

// What stage() reads: input rows top, top + row_step, … and columns left, left + col_step, …; zero
// outside the h × w image.
struct Grid {
  std::int64_t top, row_step, rows;
  std::int64_t left, col_step, width;
};

// `channels` planes into [channel][row][width].
template <class T>
void stage(const T* x, std::int64_t channels, std::int64_t h, std::int64_t w, const Grid& grid,
           T* to) {
  const auto steps_to = [&](std::int64_t col) {  // from `left`
    const std::int64_t a = col - grid.left;
    return std::clamp<std::int64_t>(a <= 0 ? 0 : (a + grid.col_step - 1) / grid.col_step, 0,
                                    grid.width);
  };
  const std::int64_t begin = steps_to(0), end = std::max(begin, steps_to(w));  // inside the image
  for (std::int64_t c = 0; c < channels; ++c)
    for (std::int64_t row = 0; row < grid.rows; ++row, to += grid.width) {
      const std::int64_t i = grid.top + row * grid.row_step;
      const bool inside = 0 <= i && i < h && begin < end;
      std::fill_n(to, inside ? begin : grid.width, T(0));
      if (!inside) continue;
      move_row(x + (c * h + i) * w + grid.left + begin * grid.col_step, grid.col_step, end - begin,
               to + begin, 1);
      std::fill(to + end, to + grid.width, T(0));
    }
}

#pragma GCC diagnostic pop

inline constexpr std::int64_t staged_elements = 1 << 17;  // half of the second-level cache in f32
inline constexpr std::int64_t shares =
    16;  // into which work is split at least, whatever the threads

// How the input of one strip of output rows is laid out: in place, or staged with its padding,
// without the rows that no tap sees where kernels are one row high, and columns likewise.
struct Window {
  bool in_place;
  std::int64_t width, col_step;  // of a staged row
  std::int64_t row_stride;       // input rows between output rows
  std::int64_t above;            // input rows of one output row beyond the first
  Correlation sum;

  std::int64_t rows(std::int64_t output_rows) const {
    return (output_rows - 1) * row_stride + 1 + above;
  }
};

// Items that are worth a thread, when all `items` together do so many multiplications.
inline std::int64_t grain(const Conv2dSize& z, std::int64_t items) {
  constexpr std::int64_t worth = 1 << 17;  // multiplications
  const std::int64_t all = z.n * z.k * z.p * z.q * z.channels_in_group() * z.r * z.s;
  return std::max<std::int64_t>(1, worth * items / std::max<std::int64_t>(1, all));
}

// A small 1×1 without stride and padding has no rows: one long row makes full tiles.
inline Conv2dSize flattened(Conv2dSize z) {
  const auto& o = z.options;
  const bool small = z.h * z.w <= 8 * chunk_pixels;
  if (small && z.r * z.s == 1 && o.stride.h * o.stride.w == 1 && o.padding.h + o.padding.w == 0) {
    z.w = z.q = z.h * z.w;
    z.h = z.p = 1;
  }
  return z;
}

inline Window forward_window(const Conv2dSize& z, bool along_rows) {
  const auto& o = z.options;
  Window window{};
  window.in_place = !along_rows && o.padding.h == 0 && o.padding.w == 0 &&
                    z.channels_in_group() * z.h * z.w <= staged_elements;
  window.col_step = z.s == 1 && !window.in_place ? o.stride.w : 1;
  window.sum.step = o.stride.w / window.col_step;
  window.width = window.in_place ? z.w : (z.q - 1) * window.sum.step + (z.s - 1) * o.dilation.w + 1;
  window.row_stride = z.r == 1 && !window.in_place ? 1 : o.stride.h;
  window.above = (z.r - 1) * o.dilation.h;
  window.sum.channels = z.channels_in_group();
  window.sum.filters = z.filters_in_group();
  window.sum.plane = z.h * z.w;
  window.sum.row_step = window.row_stride * window.width;
  window.sum.kernel = z.r * z.s;
  window.sum.along_rows = along_rows;
  for (std::int64_t r = 0; r < z.r; ++r)
    for (std::int64_t s = 0; s < z.s; ++s)
      window.sum.add_tap(r * o.dilation.h * window.width + s * o.dilation.w, r * z.s + s);
  return window;
}

// Output rows a strip has: its input fits the cache, and a batch makes enough strips.
inline std::int64_t strip_rows(std::int64_t rows, std::int64_t images, std::int64_t input_row,
                               std::int64_t stride, std::int64_t above) {
  const std::int64_t fit =
      (staged_elements / std::max<std::int64_t>(1, input_row) - above) / stride;
  const std::int64_t share = (rows * images + shares - 1) / shares;
  return std::clamp<std::int64_t>(std::min(fit, share), 1, rows);
}

// The input rows for output rows from `row` on, of one image's group: staged into `buffer`, or the
// image itself. Leaves the distance of two channels in window.sum.plane.
template <class T>
const T* windowed(Window& window, const Conv2dSize& z, const T* x, std::int64_t row,
                  std::int64_t rows, T* buffer) {
  const auto& o = z.options;
  if (window.in_place) return x + row * o.stride.h * z.w;
  const std::int64_t height = window.rows(rows);
  window.sum.plane = height * window.width;
  const Grid grid{row * o.stride.h - o.padding.h,
                  z.r == 1 ? o.stride.h : 1,
                  height,
                  -o.padding.w,
                  window.col_step,
                  window.width};
  stage(x, window.sum.channels, z.h, z.w, grid, buffer);
  return buffer;
}

// By correlations, in cpu_convolve.cpp and cpu_weights.cpp; of numbers, or of pairs (cpu_pairs.h).
void convolve(const Conv2dSize& size, bool pairs, const Tensor& x, const Tensor& w, const Tensor& b,
              Tensor& y);
void input_gradient(const Conv2dSize& size, bool pairs, const Tensor& w, const Tensor& dy,
                    Tensor& dx);
void weight_gradient(const Conv2dSize& size, bool pairs, const Tensor& x, const Tensor& dy,
                     Tensor& dw);
void bias_gradient(const Tensor& dy, Tensor& db);

}  // namespace ebb::cpu::direct
