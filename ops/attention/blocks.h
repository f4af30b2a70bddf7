// Internal: not in <ebb/ebb.h>, not installed.
// The products under the CPU twin of flash_attention: of small blocks, which stay in the caches.
//
// A block is plain memory whose rows lie `step` apart. Its columns are filled up with zeros to
// whole SIMD registers, its rows to whole groups: the rows that a product has in its registers at
// once.
#pragma once
#include "ebb/ops/simd.h"

// A packet given to a template loses its alignment attribute, which no one needs there.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace ebb::cpu {

// Eight rows of two registers are 16 sums, enough to cover the latency of two fused multiply-adds a
// cycle; AVX2 has 16 registers in all, so four rows there.
template <class T>
inline constexpr int group = lanes<float> >= 16 ? 8 : std::min(4, lanes<T>);

inline std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

template <class T>
struct Block {
  T* data;
  std::int64_t step;
  T* at(std::int64_t row, std::int64_t column = 0) const { return data + row * step + column; }
  Block from(std::int64_t row, std::int64_t column = 0) const { return {at(row, column), step}; }
  operator Block<const T>() const { return {data, step}; }  // NOLINT: to read is always allowed
};

// Which terms of the sum a row takes part in, beside the k common ones. Those that a row does not
// see are left out, not multiplied by 0: they may be NaN.
enum class Sees {
  all,        // the common ones only
  up_to_own,  // then group − 1 more: row r the first r of them
  from_own,   // before them group − 1 others: row r all but the first r
};

// What becomes of the sums.
enum class Store { set, add, scale_and_add };

// y[rows, packets · lanes] = (scale · y) + a b. a's rows are columns in memory when it is turned.
template <class T, int packets, Sees sees, bool turned, int rows>
void product(std::int64_t k, Block<const T> a, Block<const T> b, Block<T> y, Store store,
             const T* scale) {
  using P = Packet<T>;
  namespace simd = Eigen::internal;
  constexpr int l = lanes<T>;
  const std::int64_t row = turned ? 1 : a.step;
  const std::int64_t column = turned ? a.step : 1;
  P sums[rows][packets];
#pragma GCC unroll 8
  for (auto& sum : sums)
    for (P& part : sum) part = simd::pset1<P>(T(0));
  const T* x = a.data;
  const T* z = b.data;
  const auto term = [&](int first, int last) __attribute__((always_inline)) {
    P right[packets];
#pragma GCC unroll 4
    for (int p = 0; p < packets; ++p) right[p] = simd::ploadu<P>(z + p * l);
#pragma GCC unroll 8
    for (int r = first; r < last; ++r) {
      const P left = simd::pset1<P>(x[r * row]);
#pragma GCC unroll 4
      for (int p = 0; p < packets; ++p) sums[r][p] = simd::pmadd(left, right[p], sums[r][p]);
    }
    x += column;
    z += b.step;
  };
  if constexpr (sees == Sees::from_own) {
#pragma GCC unroll 8
    for (int t = 1; t < rows; ++t) term(0, t);
  }
  for (std::int64_t i = 0; i < k; ++i) term(0, rows);
  if constexpr (sees == Sees::up_to_own) {
#pragma GCC unroll 8
    for (int t = 1; t < rows; ++t) term(t, rows);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < packets; ++p) {
      T* to = y.at(r, p * l);
      P sum = sums[r][p];
      if (store == Store::add) sum = simd::padd(simd::ploadu<P>(to), sum);
      if (store == Store::scale_and_add)
        sum = simd::pmadd(simd::ploadu<P>(to), simd::pset1<P>(scale[r]), sum);
      simd::pstoreu(to, sum);
    }
  }
}

// The same for any number of columns.
template <class T, Sees sees, bool turned = false, int rows = group<T>>
void multiply(std::int64_t k, Block<const T> a, Block<const T> b, std::int64_t columns, Block<T> y,
              Store store = Store::set, const T* scale = nullptr) {
  constexpr int l = lanes<T>, most = rows == 1 ? 4 : 2;
  std::int64_t c = 0;
  for (; c + (most - 1) * l < columns; c += most * l)
    product<T, most, sees, turned, rows>(k, a, b.from(0, c), y.from(0, c), store, scale);
  for (; c < columns; c += l)
    product<T, 1, sees, turned, rows>(k, a, b.from(0, c), y.from(0, c), store, scale);
}

// to = scale · from, rows × columns of it, and zeros down to a whole group.
template <class T>
void copy_rows(Block<const T> from, std::int64_t rows, std::int64_t columns, T scale, Block<T> to) {
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t c = 0; c < columns; c += lanes<T>)
      (load_up_to(from.at(i, c), columns - c) * scale).store(to.at(i, c));
  for (std::int64_t i = rows; i < round_up(rows, group<T>); ++i)
    std::fill_n(to.at(i), round_up(columns, lanes<T>), T(0));
}

// to = fromᵀ, where `from` has rows × columns.
template <class T>
void copy_turned(Block<const T> from, std::int64_t rows, std::int64_t columns, Block<T> to) {
  constexpr int l = lanes<T>;
  for (std::int64_t i = 0; i < rows; i += l)
    for (std::int64_t c = 0; c < columns; c += l) {
      Eigen::internal::PacketBlock<Packet<T>, l> square;
      for (int r = 0; r < l; ++r)
        square.packet[r] =
            i + r < rows ? load_up_to(from.at(i + r, c), columns - c).v : Simd<T>(T(0)).v;
      Eigen::internal::ptranspose(square);
      for (int r = 0; r < l; ++r) Eigen::internal::pstoreu(to.at(c + r, i), square.packet[r]);
    }
}

}  // namespace ebb::cpu
