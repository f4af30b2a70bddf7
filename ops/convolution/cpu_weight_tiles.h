// Internal: not in <ebb/ebb.h>, not installed.
// The tiles of the CPU's weight gradient: columns (channel, tap) × filters in registers, summed
// over pixels.
#pragma once
#include <array>
#include <utility>

#include "ebb/ops/convolution/cpu_pairs.h"
#include "ebb/ops/convolution/cpu_stage.h"

namespace ebb::cpu::direct {

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of SIMD types as template arguments
// dw[column][filter] += Σ over rows × cols pixels of x[column][pixel] · dy[pixel][filter]
template <class T, bool pairs, int vectors, int columns>
void gradient_tile(const T* const* x, std::int64_t row_step, std::int64_t step, const T* dy,
                   std::int64_t rows, std::int64_t cols, T* dw) {
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
        const P pixel = pset1<P>(at[k][j * step]);
        for (int v = 0; v < vectors; ++v) sum[k][v] = add_product<pairs>(pixel, g[v], sum[k][v]);
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
template <class T, bool pairs, int columns>
void gradient_dots(const T* const* x, std::int64_t row_step, std::int64_t, const T* dy,
                   std::int64_t rows, std::int64_t cols, T* dw) {
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
        sums[k] = add_product<pairs>(g, ploadu<V>(x[k] + i * row_step + j), sums[k]);
      j += unpacket_traits<V>::size;
    };
    while (j + unpacket_traits<P>::size <= cols) add(sum);
    if (j + unpacket_traits<Half>::size <= cols) add(half);
    if (j + unpacket_traits<Quarter>::size <= cols) add(quarter);
    for (; j < cols; ++j)
      for (int k = 0; k < columns; ++k)
        single[k] = add_product<pairs>(dy[j], x[k][i * row_step + j], single[k]);
  }
  for (int k = 0; k < columns; ++k)
    dw[k] += (predux(sum[k]) + predux(half[k])) + (predux(quarter[k]) + single[k]);
}

// Registers of filters: 0 stands for dots along the rows.
template <class T>
int gradient_vectors(std::int64_t filters, std::int64_t cols, std::int64_t step) {
  // Fewer than few(): each dot ends in a sum over lanes.
  if (4 * filters < lanes<T> && cols >= lanes<T> && step == 1) return 0;
  if (wide && filters > 2 * lanes<T>) return 4;
  return filters > lanes<T> ? 2 : 1;
}

template <class T, bool pairs, int vectors>
void gradient_columns(const T* const* x, std::int64_t columns, std::int64_t row_step,
                      std::int64_t step, const T* dy, std::int64_t rows, std::int64_t cols, T* dw) {
  constexpr int most = vectors == 4 ? 6 : wide ? 9 : 5;
  static constexpr auto table = []<int... k>(std::integer_sequence<int, k...>) {
    if constexpr (vectors == 0)
      return std::array{&gradient_dots<T, pairs, k + 1>...};
    else
      return std::array{&gradient_tile<T, pairs, vectors, k + 1>...};
  }
  (std::make_integer_sequence<int, most>{});
  constexpr std::int64_t width = std::max(1, vectors * lanes<T>);
  const std::int64_t tiles = (columns + most - 1) / most;
  for (std::int64_t k = 0; k < tiles; ++k) {
    const std::int64_t first = columns * k / tiles;
    const std::int64_t count = columns * (k + 1) / tiles - first;
    table[static_cast<size_t>(count - 1)](x + first, row_step, step, dy, rows, cols,
                                          dw + first * width);
  }
}

// The function for so many registers.
template <class T, bool pairs>
auto gradient_columns_for(int vectors) {
  return vectors == 4   ? gradient_columns<T, pairs, 4>
         : vectors == 2 ? gradient_columns<T, pairs, 2>
         : vectors == 1 ? gradient_columns<T, pairs, 1>
                        : gradient_columns<T, pairs, 0>;
}

#pragma GCC diagnostic pop

}  // namespace ebb::cpu::direct
