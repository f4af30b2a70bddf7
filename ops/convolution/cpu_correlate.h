// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's direct convolution: correlations in steps of one pixel (cpu_stage.h), without im2col.
//
// A tile keeps up to `most_pixels` pixels × two SIMD registers of filters in registers, adds up
// over channels and taps with one broadcast a pixel, and leaves [pixel][filter], which `transpose`
// turns to [filter][pixel]. Where a group has no more filters than a quarter register, vectors run
// along the row instead.
#pragma once
#include <array>
#include <cstring>
#include <utility>

#include "ebb/ops/convolution/cpu_pairs.h"
#include "ebb/ops/convolution/cpu_stage.h"

namespace ebb::cpu::direct {

// Registers that hold filters first … of a group.
template <class T>
int vectors_for(std::int64_t filters) {
  return filters > lanes<T> ? 2 : 1;
}

// Where results go: element strides of a filter, a row and a column.
template <class T>
struct Destination {
  T* y;
  std::int64_t filter, row, col;
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of SIMD types as template arguments
// Weights of one group as the tiles read them: [block of filters][channel][tap][filter in block],
// the last block as narrow as its registers, zeros where there is no filter. Weight (f, c, t) is
// w[f · filter_step + c · channel_step + t]. pack_block() packs one, of `left` filters.
template <class T>
void pack_block(const T* w, const Correlation& sum, std::int64_t filter_step,
                std::int64_t channel_step, std::int64_t left, std::int64_t width, T* packed) {
  if (left < width) std::fill_n(packed, sum.terms() * width, T(0));
  const bool together = channel_step == sum.kernel;  // all terms of a filter
  if (together && width == 1) return void(std::copy_n(w, sum.terms(), packed));
  if (together) return transpose(w, filter_step, left, sum.terms(), packed, width);
  for (std::int64_t c = 0; c < sum.channels; ++c, w += channel_step, packed += sum.kernel * width) {
    if (sum.kernel >= lanes<T>)
      transpose(w, filter_step, left, sum.kernel, packed, width);
    else
      for (std::int64_t t = 0; t < sum.kernel; ++t)
        move_row(w + t, filter_step, left, packed + t * width, 1);
  }
}

template <class T>
void pack(const T* w, const Correlation& sum, std::int64_t filter_step, std::int64_t channel_step,
          T* packed) {
  const std::int64_t widest = sum.along_rows ? 1 : filter_block<T>;
  const std::int64_t blocks = (sum.filters + widest - 1) / widest;
  parallel_for(blocks, (1 << 15) / (sum.terms() * widest + 1), [&](auto begin, auto end) {
    for (std::int64_t first = begin * widest; first < std::min(end * widest, sum.filters);
         first += widest) {
      const std::int64_t left = std::min(widest, sum.filters - first);
      const std::int64_t width = widest == 1 ? 1 : vectors_for<T>(left) * lanes<T>;
      pack_block(w + first * filter_step, sum, filter_step, channel_step, left, width,
                 packed + first * sum.terms());
    }
  });
}

// Elements that pack() writes at most for one group; also the padded number of filters, × terms.
template <class T>
std::int64_t padded_filters(std::int64_t filters) {
  return (filters + filter_block<T> - 1) / filter_block<T> * filter_block<T>;
}

template <class T>
struct Tile {
  const T* in;                         // of the first channel, at the first pixel
  std::int64_t plane, step, channels;  // step: between pixels
  const std::int64_t *taps, *places;
  std::int64_t tap_count, kernel;
  const T* w;
  const T* start;                       // the sum so far, or the bias
  std::int64_t start_step, start_part;  // between pixels, 0 for the bias; and between registers
  T* out;
  std::int64_t out_step, out_part;

  void add_to_out() {
    start = out;
    start_step = out_step;
    start_part = out_part;
  }
};

template <class T, bool pairs, int vectors, int pixels>
void tile(const Tile<T>& t) {
  using namespace Eigen::internal;
  using P = Packet<T>;
  constexpr int n = lanes<T>;
  P sum[pixels][vectors];
#pragma GCC unroll 16
  for (int j = 0; j < pixels; ++j)
    for (int v = 0; v < vectors; ++v) sum[j][v] = pset1<P>(T(0));
  const auto add = [&](auto step) {
    const T* of_channel = t.w;
    const T* in = t.in;
    for (std::int64_t c = 0; c < t.channels;
         ++c, in += t.plane, of_channel += t.kernel * vectors * n)
      for (std::int64_t k = 0; k < t.tap_count; ++k) {
        const T* x = in + t.taps[k];
        const T* w = of_channel + t.places[k] * vectors * n;
        P weight[vectors];
        for (int v = 0; v < vectors; ++v) weight[v] = ploadu<P>(w + v * n);
#pragma GCC unroll 16
        for (int j = 0; j < pixels; ++j, x += step) {
          const P pixel = pset1<P>(*x);
          for (int v = 0; v < vectors; ++v)
            sum[j][v] = add_product<pairs>(pixel, weight[v], sum[j][v]);
        }
      }
  };
  if (t.step == 1)
    add(std::integral_constant<std::int64_t, 1>());
  else
    add(t.step);
#pragma GCC unroll 16
  for (int j = 0; j < pixels; ++j)
    for (int v = 0; v < vectors; ++v)
      pstoreu(t.out + j * t.out_step + v * t.out_part,
              padd(ploadu<P>(t.start + j * t.start_step + v * t.start_part), sum[j][v]));
}

template <class T, bool pairs, int vectors>
void run_tile(std::int64_t pixels, const Tile<T>& t) {
  static constexpr auto table = []<int... j>(std::integer_sequence<int, j...>) {
    return std::array{&tile<T, pairs, vectors, j + 1>...};
  }
  (std::make_integer_sequence<int, most_pixels>{});
  table[static_cast<size_t>(pixels - 1)](t);
}

inline std::int64_t channels_in_block(std::int64_t taps) {
  return std::max<std::int64_t>(1, terms_in_block / std::max<std::int64_t>(1, taps));
}

// A chunk of rows × cols pixels for one block of filters → out [pixel][filter].
template <class T, bool pairs, int vectors>
void correlate_chunk(const Correlation& sum, const T* in, std::int64_t rows, std::int64_t cols,
                     const T* w, const T* bias, T* out) {
  constexpr std::int64_t width = vectors * lanes<T>;
  const std::int64_t taps = std::ssize(sum.taps);
  const std::int64_t block = channels_in_block(taps);
  const std::int64_t tiles = (cols + most_pixels - 1) / most_pixels;
  std::int64_t c = 0, first_tap = 0;
  do {
    Tile<T> t{in,
              sum.plane,
              sum.step,
              std::min(block, sum.channels - c),
              sum.taps.data() + first_tap,
              sum.places.data() + first_tap,
              std::min(terms_in_block, taps - first_tap),
              sum.kernel,
              w + c * sum.kernel * width,
              bias,
              0,
              lanes<T>,
              out,
              width,
              lanes<T>};
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t k = 0; k < tiles; ++k) {
        const std::int64_t first = cols * k / tiles;
        t.in = in + c * sum.plane + i * sum.row_step + first * sum.step;
        t.out = out + (i * cols + first) * width;
        if (c + first_tap > 0) t.add_to_out();
        run_tile<T, pairs, vectors>(cols * (k + 1) / tiles - first, t);
      }
    first_tap += terms_in_block;
    if (first_tap < taps) continue;
    first_tap = 0;
    c += block;
  } while (c < sum.channels);
}

// Rows of `out` in which correlate_rows() leaves `cols` pixels.
template <class T>
std::int64_t padded_row(std::int64_t cols) {
  return (cols + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// The same for a single filter, vectors along the rows: w [channel][tap] → out [row][pixel]. Eight
// sums at a time, of several rows where these are short, need not wait for each other. Reads up to
// a register beyond the last pixel's input.
template <class T, bool pairs>
void correlate_rows(const Correlation& sum, const T* in, std::int64_t rows, std::int64_t cols,
                    const T* w, T bias, T* out) {
  using namespace Eigen::internal;
  using P = Packet<T>;
  constexpr int n = lanes<T>;
  const std::int64_t step = padded_row<T>(cols);
  const auto run = [&]<int down, int across>(std::int64_t i, std::int64_t j) {
    T* to = out + i * step + j;
    for (int r = 0; r < down; ++r)
      for (int v = 0; v < across; ++v) pstoreu(to + r * step + v * n, pset1<P>(bias));
    const std::int64_t *taps = sum.taps.data(), *places = sum.places.data();
    // Adds up channels [c, last) and taps [first, end).
    const auto add = [&](std::int64_t c, std::int64_t last, std::int64_t first, std::int64_t end) {
      P y[down][across];
      for (auto& row : y)
        for (P& v : row) v = pset1<P>(T(0));
      const T *of_channel = in + c * sum.plane + i * sum.row_step + j,
              *weights = w + c * sum.kernel;
      for (; c < last; ++c, of_channel += sum.plane, weights += sum.kernel)
        for (std::int64_t t = first; t < end; ++t) {
          const T* x = of_channel + taps[t];
          const P broadcast = pset1<P>(weights[places[t]]);
          for (int r = 0; r < down; ++r)
            for (int v = 0; v < across; ++v)
              y[r][v] =
                  add_product<pairs>(broadcast, ploadu<P>(x + r * sum.row_step + v * n), y[r][v]);
        }
      for (int r = 0; r < down; ++r)
        for (int v = 0; v < across; ++v) {
          T* at = to + r * step + v * n;
          pstoreu(at, padd(ploadu<P>(at), y[r][v]));
        }
    };
    const std::int64_t all = std::ssize(sum.taps), block = channels_in_block(all);
    for (std::int64_t c = 0; c < sum.channels; c += block)
      for (std::int64_t t = 0; t < all; t += terms_in_block)
        add(c, std::min(c + block, sum.channels), t, std::min(t + terms_in_block, all));
  };
  const auto all_rows = [&]<int across>(std::integral_constant<int, across>, std::int64_t j) {
    constexpr int most = 8 / across;
    std::int64_t i = 0;
    for (; i + most <= rows; i += most) run.template operator()<most, across>(i, j);
    for (; i + 4 <= rows && most > 4; i += 4)
      run.template operator()<std::min(4, most), across>(i, j);
    for (; i + 2 <= rows; i += 2) run.template operator()<2, across>(i, j);
    if (i < rows) run.template operator()<1, across>(i, j);
  };
  std::int64_t j = 0;
  for (; j + 3 * n < cols; j += 4 * n) all_rows(std::integral_constant<int, 4>(), j);
  for (; j + n < cols; j += 2 * n) all_rows(std::integral_constant<int, 2>(), j);
  for (; j < cols; j += n) all_rows(std::integral_constant<int, 1>(), j);
}

// Elements of `work` that correlate() needs.
template <class T>
constexpr std::int64_t work_size() {
  return 2 * (chunk_pixels + most_pixels) * filter_block<T>;
}

// One group, rows × cols results. `w` is packed, `bias` has padded_filters(filters) elements.
// Along rows, `in` must be readable one register beyond its end.
template <class T, bool pairs>
void correlate(const Correlation& sum, const T* in, std::int64_t rows, std::int64_t cols,
               const T* w, const T* bias, Destination<T> to, T* work) {
  const std::int64_t parts = (cols + chunk_pixels - 1) / chunk_pixels;
  const std::int64_t fit =
      sum.along_rows ? work_size<T>() / 2 / padded_row<T>(cols * sum.step) : chunk_pixels / cols;
  const std::int64_t rows_at_once = parts > 1 ? 1 : std::max<std::int64_t>(1, fit);
  T* turned = work + work_size<T>() / 2;
  for (std::int64_t first = 0; first < sum.filters;) {
    const int vectors = vectors_for<T>(sum.filters - first);
    const std::int64_t width = sum.along_rows ? 1 : vectors * lanes<T>;
    const std::int64_t filters = std::min(width, sum.filters - first);
    for (std::int64_t i = 0; i < rows; i += rows_at_once)
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t height = std::min(rows_at_once, rows - i);
        const std::int64_t left = cols * part / parts;
        const std::int64_t right = cols * (part + 1) / parts;
        const std::int64_t n = right - left;
        const T* from = in + i * sum.row_step + left * sum.step;
        T* y = to.y + first * to.filter + i * to.row + left * to.col;
        if (sum.along_rows) {
          const std::int64_t all = (n - 1) * sum.step + 1;
          correlate_rows<T, pairs>(sum, from, height, all, w, bias[first], turned);
          for (std::int64_t r = 0; r < height; ++r)
            move_row(turned + r * padded_row<T>(all), sum.step, n, y + r * to.row, to.col);
          continue;
        }
        if (vectors == 2) {
          correlate_chunk<T, pairs, 2>(sum, from, height, n, w, bias + first, work);
        } else {
          correlate_chunk<T, pairs, 1>(sum, from, height, n, w, bias + first, work);
        }
        const bool straight = to.col == 1 && (height == 1 || to.row == n);
        if (straight) {
          transpose(work, width, height * n, filters, y, to.filter);
          continue;
        }
        transpose(work, width, height * n, filters, turned, height * n);
        for (std::int64_t f = 0; f < filters; ++f)
          for (std::int64_t r = 0; r < height; ++r)
            move_row(turned + (f * height + r) * n, 1, n, y + f * to.filter + r * to.row, to.col);
      }
    w += width * sum.terms();
    first += width;
  }
}

#pragma GCC diagnostic pop

}  // namespace ebb::cpu::direct
