// Internal: not in <ebb/ebb.h>, not installed.
// The input of a correlation on the CPU: rows of pixels, in place or staged, so that taps see them
// in steps of one whatever the stride, padding and dilation.
//
//   out[f, i, j] = bias[f] + Σ over c, t of in[c · plane + i · row_step + j + taps[t]] · w[f, c, t]
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
  std::int64_t step = 1;             // columns between results, where there are few() filters

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

// What stage() reads: input rows top, top + row_step, … and columns left, left + 1, …; of every
// `stride` columns the first `phases`, each phase side by side. Zero outside the h × w image.
struct Grid {
  std::int64_t top, row_step, rows;
  std::int64_t left, stride, phases, width;
};

// `channels` planes into [channel][row][phase][width]: column left + m · stride + f is at [f][m].
template <class T>
void stage(const T* x, std::int64_t channels, std::int64_t h, std::int64_t w, const Grid& grid,
           T* to) {
  const auto ceil_to = [&](std::int64_t a) {
    return a <= 0 ? 0 : (a + grid.stride - 1) / grid.stride;
  };
  // Of a phase's row, [begin, end) lies inside the image.
  const auto inside = [&](std::int64_t f) {
    const std::int64_t begin = std::min(ceil_to(-grid.left - f), grid.width);
    return std::pair(begin, std::clamp(ceil_to(w - grid.left - f), begin, grid.width));
  };
  // f(row of the image, first phase of the staged row)
  const auto for_rows = [&](auto f) {
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t row = 0; row < grid.rows; ++row) {
        const std::int64_t i = grid.top + row * grid.row_step;
        if (0 <= i && i < h)
          f(x + (c * h + i) * w, to + (c * grid.rows + row) * grid.phases * grid.width);
      }
  };
  std::fill_n(to, channels * grid.rows * grid.phases * grid.width, T(0));
  const auto [begin, end] = inside(0);
  if (grid.phases >= 4 && inside(grid.phases - 1) == inside(0)) {
    for_rows([&, begin = begin, n = end - begin](const T* from, T* staged) {
      transpose(from + grid.left + begin * grid.stride, grid.stride, n, grid.phases, staged + begin,
                grid.width);
    });
    return;
  }
  for (std::int64_t f = 0; f < grid.phases; ++f) {
    const auto [begin, end] = inside(f);
    for_rows([&, begin = begin, n = end - begin](const T* from, T* staged) {
      move_row(from + grid.left + f + begin * grid.stride, grid.stride, n,
               staged + f * grid.width + begin, 1);
    });
  }
}

#pragma GCC diagnostic pop

inline constexpr std::int64_t staged_elements = 1 << 17;  // half of the second-level cache in f32
inline constexpr std::int64_t shares =
    16;  // into which work is split at least, whatever the threads

// How the input of one strip of output rows is laid out: in place, or staged with its padding, the
// columns of one remainder modulo the stride side by side, without rows and columns no tap sees.
struct Window {
  bool in_place;
  std::int64_t split;          // 1, or the stride: of a staged row's columns into phases
  std::int64_t phases, width;  // of a staged row
  std::int64_t row_stride;     // input rows between output rows
  std::int64_t above;          // input rows of one output row beyond the first
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

inline Window forward_window(const Conv2dSize& z, bool may_stay) {
  const auto& o = z.options;
  Window window{};
  window.in_place = may_stay && o.stride.w == 1 && o.padding.h == 0 && o.padding.w == 0 &&
                    z.channels_in_group() * z.h * z.w <= staged_elements;
  // What one filter adds up along the rows is soon done for twice the columns, sooner than staged.
  window.split = may_stay || o.stride.w > 2 ? o.stride.w : 1;
  window.phases = z.s == 1 ? 1 : window.split;
  const std::int64_t reach = (z.q - 1) * o.stride.w + (z.s - 1) * o.dilation.w + 1;
  window.width = window.in_place ? z.w : (reach + window.split - 1) / window.split;
  window.row_stride = z.r == 1 && !window.in_place ? 1 : o.stride.h;
  window.above = (z.r - 1) * o.dilation.h;
  const std::int64_t row = window.phases * window.width;
  window.sum.channels = z.channels_in_group();
  window.sum.filters = z.filters_in_group();
  window.sum.plane = z.h * z.w;
  window.sum.row_step = window.row_stride * row;
  window.sum.kernel = z.r * z.s;
  window.sum.step = o.stride.w / window.split;
  for (std::int64_t r = 0; r < z.r; ++r)
    for (std::int64_t s = 0; s < z.s; ++s) {
      const std::int64_t col = s * o.dilation.w;
      window.sum.add_tap(
          r * o.dilation.h * row + col % window.split * window.width + col / window.split,
          r * z.s + s);
    }
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
  window.sum.plane = height * window.phases * window.width;
  const Grid grid{row * o.stride.h - o.padding.h,
                  z.r == 1 ? o.stride.h : 1,
                  height,
                  -o.padding.w,
                  window.split,
                  window.phases,
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
