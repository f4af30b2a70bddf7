// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's matrix product a tile of y at a time: a and b are packed, and a kernel has its sums in
// registers.
#pragma once
#include <array>
#include <utility>

#include "ebb/ops/linalg/cpu_panels.h"

namespace ebb::cpu::tiles {

// sums of rows × so many vectors over k elements; a is read at a[i * row + k * column], b row by
// row.
template <class E, class B, class Y, int rows, int row, int column, int vectors>
void kernel(std::int64_t k, const E* a, const Panels<B>& panels, std::int64_t columns,
            const Sum<E>* start, bool add, Y* y, std::int64_t y_step) {
  using T = Sum<E>;
  using P = Packet<T>;
  constexpr int l = lanes<T>;
  P sums[rows][vectors];
#pragma GCC unroll 16
  for (auto& sum : sums)
    for (P& part : sum) part = simd::pset1<P>(T(0));
  const B* b = panels.data;
  const std::int64_t panel = block_columns<T> * panels.column;
  for (std::int64_t j = 0; j < k; ++j, a += column, b += panels.row) {
    const auto right = [&](int v) { return load(b + v / 2 * panel + v % 2 * l); };
    P near[rows == 1 ? 1 : vectors];  // of one row each is needed once
#pragma GCC unroll 16
    for (int v = 0; v < vectors && rows > 1; ++v) near[v] = right(v);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const P left = everywhere(a[i * row]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v)
        sums[i][v] = add_product<per<E> == 2>(left, rows == 1 ? right(v) : near[v], sums[i][v]);
    }
  }
  const bool whole = columns == vectors * l;
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i, y += y_step) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      auto sum = Simd<T>::of(sums[i][v]);
      Y* to = y + v * l;
      if (start) sum = sum + Simd<T>::load(start + v * l);
      if (whole || (v + 1) * l <= columns) {
        (add ? Simd<T>::load(to) + sum : sum).store(to);
      } else {
        (add ? Simd<T>::load(to, columns - v * l) + sum : sum).store(to, columns - v * l);
      }
    }
  }
}

template <class E, class B, class Y>
using Kernel = void (*)(std::int64_t, const E*, const Panels<B>&, std::int64_t, const Sum<E>*, bool,
                        Y*, std::int64_t);

// Few rows take as many vectors as there are registers for sums.
constexpr int most_vectors(int rows) {
  return rows > 4 ? 2 : std::bit_floor(static_cast<unsigned>(2 * block_rows / rows));
}

// The kernel for this many rows, 1 to block_rows, and 1, 2 or most_vectors(rows) vectors.
template <class E, class B, class Y, int row, int column>
Kernel<E, B, Y> kernel_for(std::int64_t rows, std::int64_t vectors) {
  static constexpr auto all = []<size_t... i>(std::index_sequence<i...>) {
    return std::array{std::array<Kernel<E, B, Y>, 3>{
        kernel<E, B, Y, i + 1, row, column, 1>, kernel<E, B, Y, i + 1, row, column, 2>,
        kernel<E, B, Y, i + 1, row, column, most_vectors(i + 1)>}...};
  }
  (std::make_index_sequence<block_rows>{});
  return all[static_cast<size_t>(rows - 1)][vectors > 2 ? 2 : static_cast<size_t>(vectors - 1)];
}

// One task: y[rows, columns] from a and b over k. Everything but the leading dimension of y is that
// of the tile.
template <class S, class Y>
struct Task {
  std::int64_t rows, columns, k;
  View<S> a, b;
  const S* bias;
  Y* y;
  std::int64_t y_step;

  // Whole panels that few rows use are read where they lie.
  bool b_in_place() const {
    return b.column == 1 && columns % block_columns<Wide<S>> == 0 && rows <= block_rows;
  }
  // Whether k is long, and rows are many, so that products take longer than packing.
  bool worth_pairs() const { return k >= 24 && !(b_in_place() && rows <= block_rows / 2); }
};

// Where a task's sums are added up: y itself, or f32 that is rounded to y in the end.
template <class Y>
struct Tile {
  std::int64_t rows, columns;
  Y* data;
  std::int64_t step;
};

// Rows i … of the tile: panels of columns from left to right, so that y is written in long runs
// while the rows of a stay in the L1 cache and b streams from L2.
template <int row, int column, class E, class B, class Y>
void multiply_rows(const Tile<Y>& y, std::int64_t k, std::int64_t i, const E* a, const Panels<B>& b,
                   const Sum<E>* start, bool add) {
  constexpr int l = lanes<Sum<E>>;
  const std::int64_t rows = std::min<std::int64_t>(block_rows, y.rows - i);
  const std::int64_t most = most_vectors(static_cast<int>(rows));
  std::int64_t columns;
  for (std::int64_t first = 0; first < y.columns; first += columns) {
    const std::int64_t left = y.columns - first;
    const std::int64_t vectors = left >= most * l ? most : left > l ? 2 : 1;
    columns = std::min(left, vectors * l);
    kernel_for<E, B, Y, row, column>(rows, vectors)(k, a, {b.at(first), b.column, b.row}, columns,
                                                    start ? start + first : nullptr, add,
                                                    y.data + i * y.step + first, y.step);
  }
}

// Memory for what is packed, kept by each thread.
template <class T>
T* scratch(std::int64_t size) {
  thread_local Eigen::Array<T, Eigen::Dynamic, 1> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// A task's operands, packed as elements E for some of k.
template <class E, class S, class Y>
class Packed {
 public:
  // Numbers d … d + k, no more than depth elements; memory for packed_size of E.
  Packed(const Task<S, Y>& t, std::int64_t d, std::int64_t k, E* memory)
      : t_(t), d_(d), elements_((k + per<E> - 1) / per<E>), a_(memory), b_(memory + a_size) {
    pack_a(t.a.from(0, d), k, t.rows, a_);
    for (std::int64_t first = 0; first < t.columns && !b_in_place(); first += width)
      pack_b(t.b.from(d, first), k, std::min(width, t.columns - first), b_ + first * depth);
  }

  bool no_denormals() const requires std::is_same_v<E, Pair> {
    const auto least = [](const Pair* pairs, std::int64_t runs, std::int64_t distance,
                          std::int64_t n) {
      int least = least_exponent(&pairs->first, 2 * n);
      for (std::int64_t r = 1; r < runs; ++r)
        least = std::min(least, least_exponent(&pairs[r * distance].first, 2 * n));
      return least;
    };
    const std::int64_t panels = (t_.columns + width - 1) / width;
    const std::int64_t blocks = (t_.rows + block_rows - 1) / block_rows;
    return cpu::no_denormals(rows_lie()
                                 ? least(a_, t_.rows, step, elements_)
                                 : least(a_, blocks, block_rows * depth, block_rows * elements_),
                             least(b_, panels, width * depth, width * elements_));
  }

  // y (+)= a · b (+ start).
  template <class Out>
  void multiply(const Tile<Out>& y, const Sum<E>* start, bool add) const {
    const auto with = [&](const auto& b) {
      for (std::int64_t i = 0; i < y.rows; i += block_rows)
        if (rows_lie())
          multiply_rows<step, 1>(y, elements_, i, a_ + i * step, b, start, add);
        else
          multiply_rows<1, block_rows>(y, elements_, i, a_ + i * depth, b, start, add);
    };
    if constexpr (per<E> == 1)
      if (b_in_place()) return with(Panels<S>{t_.b.at(d_, 0), 1, t_.b.row});
    with(Panels<E>{b_, depth, width});
  }

  static constexpr std::int64_t size = tile_rows * step + depth * tile_columns<Sum<E>>;

 private:
  static constexpr std::int64_t width = block_columns<Sum<E>>, a_size = tile_rows * step;

  bool rows_lie() const { return t_.a.row != 1; }
  bool b_in_place() const { return per<E> == 1 && t_.b_in_place(); }

  const Task<S, Y>& t_;
  const std::int64_t d_, elements_;
  E *const a_, *const b_;
};

// y (+)= the products of some of k from d on; how many.
template <class S, class Y, class Out>
std::int64_t add_products(const Task<S, Y>& t, std::int64_t d, Wide<S>* memory,
                          const Wide<S>* start, const Tile<Out>& y) {
  if constexpr (multiplies_pairs && std::is_same_v<S, bf16>)
    if (t.worth_pairs()) {
      const std::int64_t k = std::min(2 * depth, t.k - d);
      const Packed<Pair, S, Y> packed(t, d, k, reinterpret_cast<Pair*>(memory));
      if (packed.no_denormals()) {
        packed.multiply(y, start, d > 0);
        return k;
      }
    }
  const std::int64_t k = std::min(depth, t.k - d);
  Packed<Wide<S>, S, Y>(t, d, k, memory).multiply(y, start, d > 0);
  return k;
}

template <class S, class Y>
void run_task(const Task<S, Y>& t) {
  using T = Wide<S>;
  constexpr std::int64_t columns = tile_columns<T>, packed = Packed<T, S, Y>::size;
  T* memory = scratch<T>(packed + columns + (std::is_same_v<Y, T> ? 0 : tile_rows * columns));
  T *bias = memory + packed, *sums = bias + columns;
  if (t.bias) convert(t.bias, t.columns, bias);
  const auto add_all = [&](const auto& y) {
    for (std::int64_t d = 0; d < t.k;)
      d += add_products(t, d, memory, t.bias && d == 0 ? bias : nullptr, y);
  };
  const Tile<Y> y{t.rows, t.columns, t.y, t.y_step};
  if (std::is_same_v<Y, T> || t.k <= depth) return add_all(y);
  if constexpr (!std::is_same_v<Y, T>) {
    const Tile<T> near{t.rows, t.columns, sums, t.columns};
    add_all(near);
    if (t.columns == t.y_step) return convert(sums, t.rows * t.columns, t.y);
    for (std::int64_t i = 0; i < t.rows; ++i)
      convert(sums + i * t.columns, t.columns, t.y + i * t.y_step);
  }
}

}  // namespace ebb::cpu::tiles
