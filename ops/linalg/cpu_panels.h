// Internal: not in <ebb/ebb.h>, not installed.
// Panels: the operands of the CPU's matrix product, copied so that a kernel reads both in order.
//
// Their elements are T, with bf16 widened to f32, or pairs of bf16 that follow each other along k:
// for those some processors have one instruction, which multiplies both and adds them to an f32.
#pragma once
#include <algorithm>
#include <bit>
#include <cstring>

#include "ebb/ops/map.h"
#include "ebb/ops/pairs.h"

// A packet given to a template loses its alignment attribute, which no one needs there.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace ebb::cpu::tiles {

namespace simd = Eigen::internal;

struct Pair {
  bf16 first, second;
};

// What sums of such elements are.
template <class E>
using Sum = std::conditional_t<std::is_same_v<E, Pair>, float, Wide<E>>;
template <class E>
inline constexpr std::int64_t per = std::is_same_v<E, Pair> ? 2 : 1;  // numbers along k

// As many elements as sums fit in a register.
template <class E>
Packet<Sum<E>> load(const E* p) {
  if constexpr (std::is_same_v<E, Pair>)
    return simd::ploadu<Packet<float>>(reinterpret_cast<const float*>(p));
  else
    return Simd<Sum<E>>::load(p).v;
}

// The same element in all of it.
template <class E>
Packet<Sum<E>> everywhere(const E& x) {
  if constexpr (std::is_same_v<E, Pair>)
    return simd::pset1<Packet<float>>(std::bit_cast<float>(x));
  else
    return simd::pset1<Packet<E>>(x);
}

// The register block: 8 rows of two packets are 16 sums, enough to cover the latency of two fused
// multiply-adds a cycle; AVX2 has 16 registers in all, so 6 rows there.
inline constexpr int block_rows = lanes<float> >= 16 ? 8 : 6;
template <class T>
inline constexpr int block_columns = 2 * lanes<T>;

// The cache blocks, in elements. A tile of y and a chunk of k are one task: they depend on the
// sizes only.
inline constexpr std::int64_t depth = 256;  // block_rows of a, so deep, stay in the L1 cache
inline constexpr std::int64_t tile_rows = 16 * block_rows;
template <class T>  // × depth: 256 KiB, in the L2 cache
inline constexpr std::int64_t tile_columns = 8 * block_columns<T>;
inline constexpr std::int64_t step = depth + 16;  // between rows of a packed a: not a power of two

// Element (i, j) of a matrix in place; one of the two steps is 1.
template <class S>
struct View {
  const S* data;
  std::int64_t row, column;
  const S* at(std::int64_t i, std::int64_t j) const { return data + i * row + j * column; }
  View from(std::int64_t i, std::int64_t j) const { return {at(i, j), row, column}; }
};

// Panels of b, block_columns wide: column `first` starts at data + first * column, its rows are
// `row` apart.
template <class B>
struct Panels {
  const B* data;
  std::int64_t column, row;
  const B* at(std::int64_t first) const { return data + first * column; }
};

// One element, of numbers that are `step` apart along k; beyond `left` of them are zeros.
template <class E, class S>
E element(const S* from, std::int64_t step, std::int64_t left) {
  if constexpr (std::is_same_v<E, Pair>)
    return {*from, left > 1 ? from[step] : bf16()};
  else
    return E(*from);
}

// n elements of as many columns, side by side. A whole block is a few registers; a loop of unknown
// length would take longer.
template <int whole, class E, class S>
void pack_row(const S* from, std::int64_t n, std::int64_t step, std::int64_t left, E* to) {
  const auto pack = [=](auto n) {
    if (left >= per<E>)
      for (std::int64_t i = 0; i < n; ++i) to[i] = element<E>(from + i, step, per<E>);
    else
      for (std::int64_t i = 0; i < n; ++i) to[i] = element<E>(from + i, step, left);
  };
  n == whole ? pack(std::integral_constant<std::int64_t, whole>()) : pack(n);
}

// A register of elements that follow each other along k; beyond `left` numbers they are zeros, or
// what no one reads.
template <class E, class S>
Packet<Sum<E>> along(const S* from, std::int64_t left) {
  const bool whole = left >= per<E> * lanes<Sum<E>>;
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<E, Pair>) {
    const auto first = whole ? ~__mmask32{} : static_cast<__mmask32>((1u << left) - 1u);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first, from));
  } else
#endif
    return whole ? load(from) : Simd<E>::load(from, left).v;
}

template <class E>
void store(const Packet<Sum<E>>& x, E* to) {
  simd::pstoreu(reinterpret_cast<Sum<E>*>(to), x);
}

// Columns of b, k deep, as rows of block_columns, zeros to the right.
template <class E, class S>
void pack_b(const View<S>& b, std::int64_t k, std::int64_t columns, E* out) {
  constexpr int width = block_columns<Sum<E>>, l = lanes<Sum<E>>;
  constexpr std::int64_t p = per<E>;
  const std::int64_t rows = (k + p - 1) / p;
  if (columns < width) std::fill(out, out + rows * width, E{});
  if (b.column == 1) {
    for (std::int64_t i = 0; i < rows; ++i)
      pack_row<width>(b.at(i * p, 0), columns, b.row, k - i * p, out + i * width);
    return;
  }
  const std::int64_t square_rows = k / p / l * l, square_columns = columns / l * l;
  for (std::int64_t c = 0; c < square_columns; c += l)
    for (std::int64_t i = 0; i < square_rows; i += l) {
      simd::PacketBlock<Packet<Sum<E>>, l> square;
      for (int j = 0; j < l; ++j) square.packet[j] = along<E>(b.at(i * p, c + j), k);
      simd::ptranspose(square);
      for (int j = 0; j < l; ++j) store(square.packet[j], out + (i + j) * width + c);
    }
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t c = i < square_rows ? square_columns : 0;
    if constexpr (p == 1) {
      gather_row(b.at(i, c), b.column, columns - c, out + i * width + c);
    } else {
      for (std::int64_t j = c; j < columns; ++j)
        out[i * width + j] = element<E>(b.at(i * p, j), 1, k - i * p);
    }
  }
}

// Rows of a, k deep: one after another, `step` apart, when a lies so, else (its `row` is 1) blocks
// of block_rows for each element along k.
template <class E, class S>
void pack_a(const View<S>& a, std::int64_t k, std::int64_t rows, E* out) {
  constexpr std::int64_t p = per<E>;
  if (a.row != 1) {
    for (std::int64_t i = 0; i < rows; ++i)  // by whole registers: `step` leaves room for one more
      for (std::int64_t j = 0; j < k; j += p * lanes<Sum<E>>)
        store(along<E>(a.at(i, j), k - j), out + i * step + j / p);
    return;
  }
  for (std::int64_t i = 0; i < rows; i += block_rows) {
    const std::int64_t n = std::min<std::int64_t>(block_rows, rows - i);
    E* block = out + i * depth;
    if (n < block_rows) std::fill(block, block + depth * block_rows, E{});
    for (std::int64_t j = 0; j < k; j += p, block += block_rows)
      pack_row<block_rows>(a.at(i, j), n, a.column, k - j, block);
  }
}

}  // namespace ebb::cpu::tiles
