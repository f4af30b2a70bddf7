// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's matrix product a tile of y at a time: a and b are packed, so that a kernel reads both
// in order, and has its sums in registers.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "ebb/ops/simd.h"

// A packet given to a template loses its alignment attribute, which no one needs there.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace ebb::cpu::tiles {

namespace simd = Eigen::internal;

// The register block: 8 rows of two packets are 16 sums, enough to cover the latency of two fused
// multiply-adds a cycle; AVX2 has 16 registers in all, so 6 rows there.
inline constexpr int block_rows = lanes<float> >= 16 ? 8 : 6;
template <class T>
inline constexpr int block_columns = 2 * lanes<T>;

// The cache blocks. A tile of y and a chunk of k are one task: they depend on the sizes only.
inline constexpr std::int64_t depth = 256;  // block_rows of a, so deep, stay in the L1 cache
inline constexpr std::int64_t tile_rows = 16 * block_rows;
template <class T>  // × depth: 256 KiB, in the L2 cache
inline constexpr std::int64_t tile_columns = 8 * block_columns<T>;
inline constexpr std::int64_t step = depth + 16;  // between rows of a packed a: not a power of two

// Element (i, j) of a matrix in place; one of the two steps is 1.
template <class T>
struct View {
  const T* data;
  std::int64_t row, column;
  const T* at(std::int64_t i, std::int64_t j) const { return data + i * row + j * column; }
};

// Panels of b, block_columns wide: column `first` starts at data + first * column, its rows are
// `row` apart.
template <class T>
struct Panels {
  const T* data;
  std::int64_t column, row;
  const T* at(std::int64_t first) const { return data + first * column; }
};

// sums of rows × so many vectors over k; a is read at a[i * row + k * column], b row by row.
template <class T, int rows, int row, int column, int vectors>
void kernel(std::int64_t k, const T* a, const Panels<T>& panels, std::int64_t columns,
            const T* start, bool add, T* y, std::int64_t y_step) {
  using P = Packet<T>;
  constexpr int l = lanes<T>;
  P sums[rows][vectors];
#pragma GCC unroll 16
  for (auto& sum : sums)
    for (P& part : sum) part = simd::pset1<P>(T(0));
  const T* b = panels.data;
  const std::int64_t panel = block_columns<T> * panels.column;
  for (std::int64_t j = 0; j < k; ++j, a += column, b += panels.row) {
    P right[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) right[v] = simd::ploadu<P>(b + v / 2 * panel + v % 2 * l);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const P x = simd::pset1<P>(a[i * row]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[i][v] = simd::pmadd(x, right[v], sums[i][v]);
    }
  }
  const bool whole = columns == vectors * l;
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i, y += y_step) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      auto sum = Simd<T>::of(sums[i][v]);
      T* to = y + v * l;
      if (start) sum = sum + Simd<T>::load(start + v * l);
      if (whole || (v + 1) * l <= columns) {
        (add ? Simd<T>::load(to) + sum : sum).store(to);
      } else {
        (add ? Simd<T>::load(to, columns - v * l) + sum : sum).store(to, columns - v * l);
      }
    }
  }
}

template <class T>
using Kernel = void (*)(std::int64_t, const T*, const Panels<T>&, std::int64_t, const T*, bool, T*,
                        std::int64_t);

// Few rows take as many vectors as there are registers for sums.
constexpr int most_vectors(int rows) {
  return rows > 4 ? 2 : std::bit_floor(static_cast<unsigned>(2 * block_rows / rows));
}

// The kernel for this many rows, 1 to block_rows, and 1, 2 or most_vectors(rows) vectors.
template <class T, int row, int column>
Kernel<T> kernel_for(std::int64_t rows, std::int64_t vectors) {
  static constexpr auto all = []<size_t... i>(std::index_sequence<i...>) {
    return std::array{
        std::array<Kernel<T>, 3>{kernel<T, i + 1, row, column, 1>, kernel<T, i + 1, row, column, 2>,
                                 kernel<T, i + 1, row, column, most_vectors(i + 1)>}...};
  }
  (std::make_index_sequence<block_rows>{});
  return all[static_cast<size_t>(rows - 1)][vectors > 2 ? 2 : static_cast<size_t>(vectors - 1)];
}

// A whole block is a few registers; a call of memmove would take longer.
template <int whole, class T>
void copy(const T* from, std::int64_t n, T* to) {
  if (n == whole)
    std::memcpy(to, from, whole * sizeof(T));
  else
    std::copy_n(from, n, to);
}

// Columns first … of b, `columns` of them, k deep, as rows of block_columns, zeros to the right.
template <class T>
void pack_b(const View<T>& b, std::int64_t k, std::int64_t columns, T* out) {
  constexpr int width = block_columns<T>;
  using P = Packet<T>;
  constexpr int l = lanes<T>;
  if (columns < width) std::fill(out, out + k * width, T(0));
  if (b.column == 1) {
    for (std::int64_t i = 0; i < k; ++i) copy<width>(b.at(i, 0), columns, out + i * width);
    return;
  }
  std::int64_t whole = 0;  // columns done in squares of packets
  for (; whole + l <= columns; whole += l) {
    std::int64_t i = 0;
    for (; i + l <= k; i += l) {
      simd::PacketBlock<P, l> square;
      for (int j = 0; j < l; ++j) square.packet[j] = simd::ploadu<P>(b.at(i, whole + j));
      simd::ptranspose(square);
      for (int j = 0; j < l; ++j) simd::pstoreu(out + (i + j) * width + whole, square.packet[j]);
    }
    for (; i < k; ++i) gather_row(b.at(i, whole), b.column, l, out + i * width + whole);
  }
  for (std::int64_t i = 0; i < k && whole < columns; ++i)
    gather_row(b.at(i, whole), b.column, columns - whole, out + i * width + whole);
}

// One task: y[rows, columns] from a and b over k; `add` to what is there. Everything but the
// leading dimension of y is that of the tile.
template <class T>
struct Task {
  std::int64_t rows, columns, k;
  View<T> a, b;
  const T* bias;
  T* y;
  std::int64_t y_step;
};

// Memory for packed panels, kept by each thread.
template <class T>
T* scratch(std::int64_t size) {
  thread_local Eigen::Array<T, Eigen::Dynamic, 1> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// a, k deep: rows one after another when a lies so, else (`row` is 1) blocks of block_rows for each
// k.
template <class T>
void pack_a(const View<T>& a, std::int64_t k, std::int64_t rows, T* out) {
  if (a.row != 1) {
    for (std::int64_t i = 0; i < rows; ++i)  // by whole registers: `step` leaves room for one more
      for (std::int64_t j = 0; j < k; j += lanes<T>)
        Simd<T>::load(a.at(i, j), k - j).store(out + i * step + j);
    return;
  }
  for (std::int64_t i = 0; i < rows; i += block_rows) {
    const std::int64_t n = std::min<std::int64_t>(block_rows, rows - i);
    for (std::int64_t j = 0; j < k; ++j)
      copy<block_rows>(a.at(i, j), n, out + i * depth + j * block_rows);
  }
}

// Rows i … of the tile, k deep: panels of columns from left to right, so that y is written in long
// runs while the rows of a stay in the L1 cache and b streams from L2.
template <class T, int row, int column>
void multiply_rows(const Task<T>& t, std::int64_t k, std::int64_t i, const T* a, const Panels<T>& b,
                   const T* bias, bool add) {
  constexpr int l = lanes<T>;
  const std::int64_t rows = std::min<std::int64_t>(block_rows, t.rows - i);
  const std::int64_t most = most_vectors(static_cast<int>(rows));
  std::int64_t columns;
  for (std::int64_t first = 0; first < t.columns; first += columns) {
    const std::int64_t left = t.columns - first;
    const std::int64_t vectors = left >= most * l ? most : left > l ? 2 : 1;
    columns = std::min(left, vectors * l);
    kernel_for<T, row, column>(rows, vectors)(k, a, {b.at(first), b.column, b.row}, columns,
                                              bias ? bias + first : nullptr, add,
                                              t.y + i * t.y_step + first, t.y_step);
  }
}

template <class T>
void run_task(const Task<T>& t) {
  constexpr int width = block_columns<T>;
  T* packed_a = scratch<T>(tile_rows * step + depth * tile_columns<T> + tile_columns<T>);
  T* packed_b = packed_a + tile_rows * step;
  T* bias = packed_b + depth * tile_columns<T>;
  if (t.bias) std::copy_n(t.bias, t.columns, bias);
  // Whole panels that few rows use are read where they lie.
  const bool in_place = t.b.column == 1 && t.columns % width == 0 && t.rows <= block_rows;
  for (std::int64_t d = 0; d < t.k; d += depth) {
    const std::int64_t k = std::min(depth, t.k - d);
    pack_a<T>({t.a.at(0, d), t.a.row, t.a.column}, k, t.rows, packed_a);
    for (std::int64_t first = 0; first < t.columns && !in_place; first += width)
      pack_b<T>({t.b.at(d, first), t.b.row, t.b.column}, k,
                std::min<std::int64_t>(width, t.columns - first), packed_b + first * depth);
    const Panels<T> b =
        in_place ? Panels<T>{t.b.at(d, 0), 1, t.b.row} : Panels<T>{packed_b, depth, width};
    const T* start = t.bias && d == 0 ? bias : nullptr;
    for (std::int64_t i = 0; i < t.rows; i += block_rows) {
      if (t.a.row != 1)
        multiply_rows<T, step, 1>(t, k, i, packed_a + i * step, b, start, d > 0);
      else
        multiply_rows<T, 1, block_rows>(t, k, i, packed_a + i * depth, b, start, d > 0);
    }
  }
}

}  // namespace ebb::cpu::tiles
