// Internal: not in <ebb/ebb.h>, not installed.
// CPU sums: in double, over fixed blocks, so that neither the length nor the number of threads
// shows in the result.
#pragma once
#include <vector>

#include "ebb/core/parallel.h"

namespace ebb::cpu {

// Σ f(i) over [begin, end); f returns float or double. By value: what a closure behind a reference
// holds, GCC gathers for every lane, six times slower.
template <class F>
double sum_of(std::int64_t begin, std::int64_t end, F f) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = begin; i < end; ++i) sum += static_cast<double>(f(i));
  return sum;
}

// The same, on all threads.
template <class F>
double long_sum_of(std::int64_t n, const F& f) {
  constexpr std::int64_t block = 1 << 16;
  return block_sum<double>(
      n, block, [&](std::int64_t begin, std::int64_t end) { return sum_of(begin, end, f); });
}

// sums[c] += Σ f(row, c) over rows [first, last), for c < columns: four rows at a time, so that the
// sums are read and written a quarter as often. By value, as above.
template <class F>
void add_rows(std::int64_t first, std::int64_t last, std::int64_t columns, double* sums, F f) {
  const auto term = [f](std::int64_t row, std::int64_t c) {
    return static_cast<double>(f(row, c));
  };
  std::int64_t row = first;
  for (; row + 4 <= last; row += 4) {
#pragma omp simd
    for (std::int64_t c = 0; c < columns; ++c)
      sums[c] += (term(row, c) + term(row + 1, c)) + (term(row + 2, c) + term(row + 3, c));
  }
  for (; row < last; ++row) {
#pragma omp simd
    for (std::int64_t c = 0; c < columns; ++c) sums[c] += term(row, c);
  }
}

// Sums of `count` quantities over the rows of a [rows, cols] matrix, one for each column:
// add(first row, last row, first column, columns, sums) adds those rows' terms of each quantity,
// sums[q][c]. Returns [count][cols].
template <int count, class Add>
std::vector<double> column_sums(std::int64_t rows, std::int64_t cols, const Add& add) {
  constexpr std::int64_t block = 1024;
  constexpr std::int64_t tile = 512;
  const std::int64_t blocks = std::max<std::int64_t>(1, (rows + block - 1) / block);
  const std::int64_t tiles = (cols + tile - 1) / tile;
  std::vector<double> partial(static_cast<size_t>(blocks * count * cols));
  const std::int64_t grain = 32768 / (std::min(rows, block) * std::min(cols, tile) + 1);
  parallel_for(blocks * tiles, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t part = first; part < last; ++part) {
      const std::int64_t b = part / tiles;
      const std::int64_t column = part % tiles * tile;
      double* sums[count];
      for (int q = 0; q < count; ++q) sums[q] = partial.data() + (b * count + q) * cols + column;
      add(b * block, std::min(rows, (b + 1) * block), column, std::min(tile, cols - column), sums);
    }
  });
  for (std::int64_t b = 1; b < blocks; ++b)
    for (std::int64_t i = 0; i < count * cols; ++i)
      partial[static_cast<size_t>(i)] += partial[static_cast<size_t>(b * count * cols + i)];
  partial.resize(static_cast<size_t>(count * cols));
  return partial;
}

}  // namespace ebb::cpu
