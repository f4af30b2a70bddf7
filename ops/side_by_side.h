// Internal: not in <ebb/ebb.h>, not installed.
// Short rows and small planes, as many side by side as a register has lanes: where element i of one
// is worked on, element i of its neighbours is too. There are no edges and no tails then.
#pragma once
#include <algorithm>

#include "ebb/ops/simd.h"

namespace ebb::cpu {

namespace detail {
template <class P>
Eigen::internal::PacketBlock<P, Eigen::internal::unpacket_traits<P>::size> square_of(P) {
  return {};
}
}  // namespace detail

// A square of registers `from_step` apart, transposed; rows beyond `rows` are anything, those of
// the result beyond `cols` stay unwritten.
template <class T>
void transpose_square(const T* from, std::int64_t from_step, T* to, std::int64_t to_step,
                      std::int64_t rows = lanes<T>, std::int64_t cols = lanes<T>) {
  constexpr int width = lanes<T>;
  auto square = detail::square_of(Simd<T>(T(0)).v);
  if (rows >= width) {
#pragma GCC unroll 16
    for (int j = 0; j < width; ++j) square.packet[j] = Simd<T>::load(from + j * from_step).v;
  } else {
    for (int j = 0; j < width; ++j)
      if (j < rows) square.packet[j] = Simd<T>::load(from + j * from_step).v;
  }
  Eigen::internal::ptranspose(square);
  if (cols >= width) {
#pragma GCC unroll 16
    for (int j = 0; j < width; ++j) Simd<T>::of(square.packet[j]).store(to + j * to_step);
  } else {
    for (int j = 0; j < width; ++j)
      if (j < cols) Simd<T>::of(square.packet[j]).store(to + j * to_step);
  }
}

// to[i] has element i of each of `count` rows of n, at most as many as there are lanes; lanes
// beyond repeat the last row.
template <class T>
void side_by_side(const T* x, std::int64_t n, std::int64_t count, Simd<T>* to) {
  constexpr std::int64_t width = lanes<T>;
  for (std::int64_t i = 0; i < n; i += width) {
    const std::int64_t at = n < width ? 0 : std::min(i, n - width);
    auto square = detail::square_of(Simd<T>(T(0)).v);
    for (std::int64_t r = 0; r < width; ++r) {
      const T* row = x + std::min(r, count - 1) * n + at;
      square.packet[r] = (n < width ? Simd<T>::load(row, n) : Simd<T>::load(row)).v;
    }
    Eigen::internal::ptranspose(square);
    for (std::int64_t k = 0; k < std::min(n, width); ++k) to[at + k].v = square.packet[k];
  }
}

// The way back.
template <class T>
void row_by_row(const Simd<T>* from, std::int64_t n, std::int64_t count, T* y) {
  constexpr std::int64_t width = lanes<T>;
  for (std::int64_t i = 0; i < n; i += width) {
    const std::int64_t at = n < width ? 0 : std::min(i, n - width);
    auto square = detail::square_of(Simd<T>(T(0)).v);
    for (std::int64_t k = 0; k < width; ++k) square.packet[k] = from[std::min(at + k, n - 1)].v;
    Eigen::internal::ptranspose(square);
    for (std::int64_t r = 0; r < count; ++r) {
      const auto row = Simd<T>::of(square.packet[r]);
      n < width ? row.store(y + r * n, n) : row.store(y + r * n + at);
    }
  }
}

}  // namespace ebb::cpu
