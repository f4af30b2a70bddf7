// Internal: not in <ebb/ebb.h>, not installed.
// Short rows as columns: some hundreds of them are laid side by side, near, so that what is done
// along a row is done to whole registers, and ops need no other code than that of columns.
#pragma once
#include <array>

#include "ebb/ops/map.h"
#include "ebb/ops/reduction/axes.h"
#include "ebb/ops/side_by_side.h"

namespace ebb::cpu {

// Also [outer, n, inner] with little in n and inner: each outer index is a row of n · inner. Rows
// of a register (16) are worth laying side by side for one input, not for more.
template <class T>
bool are_short_rows(const View& v, int inputs = 1) {
  const std::int64_t most = v.inner != 1 ? 64 : inputs == 1 ? 16 : 15;
  return v.outer > 1 && 0 < v.n && 0 < v.inner && v.inner < lanes<Wide<T>> && v.n * v.inner <= most;
}

template <class T>
inline constexpr std::int64_t near_elements = 8192 / sizeof(Wide<T>);

namespace detail {

// to[k · step + r] = x[r · n + k] for r < count, by whole registers. By way of `near`, as memory is
// to be read in order.
template <class X, class T>
void rows_to_columns(const X* x, std::int64_t n, std::int64_t count, T* near, T* to,
                     std::int64_t step) {
  constexpr std::int64_t width = lanes<T>;
  T* rows = n == 1 ? to : near;
  map_row(
      rows, count * n, [](auto x) { return x; }, x);
  for (std::int64_t r = count; r < step; ++r) std::copy_n(rows + (count - 1) * n, n, rows + r * n);
  for (std::int64_t r = 0; r < step && n > 1; r += width)
    for (std::int64_t k = 0; k < n; k += width)
      transpose_square(near + r * n + k, n, to + k * step + r, step, width, n - k);
}

// The way back. What a register has too much is written over: by the row's successor, the end of
// which is written before its beginning.
template <class T, class Y>
void columns_to_rows(const T* from, std::int64_t step, std::int64_t n, std::int64_t count, T* near,
                     Y* y) {
  constexpr std::int64_t width = lanes<T>;
  for (std::int64_t r = 0; r < step && n > 1; r += width)
    for (std::int64_t k = (n - 1) / width * width; k >= 0; k -= width)
      transpose_square(from + k * step + r, step, near + r * n + k, n, n - k, width);
  map_row(
      y, count * n, [](auto x) { return x; }, n == 1 ? from : near);
}

template <class T, size_t inputs>
struct NearRows {
  T rows[near_elements<T> + lanes<T>];
  T to[near_elements<T>];
  T from[inputs][near_elements<T>];
};

}  // namespace detail

// How many rows are laid side by side, where they become rows of m.
template <class T>
std::int64_t rows_together(const View& v, std::int64_t m) {
  constexpr std::int64_t width = lanes<Wide<T>>;
  return near_elements<T> / std::max(v.n * v.inner, m) / width * width;
}

// f(first, count, columns, from…, to): the elements of `count` rows from `first` on are the columns
// of each `from`, and what `to` then has becomes y's, in rows of `m`; m may be 0. bf16 are f32
// there. columns.inner is whole registers: columns beyond `count` have something of the last row's.
// Rows [begin, end), on this thread, in order.
template <class T, class F, class... X>
void each_short_row(const View& v, std::int64_t begin, std::int64_t end, const F& f, T* y,
                    std::int64_t m, const X*... x) {
  constexpr std::int64_t width = lanes<Wide<T>>;
  const std::int64_t n = v.n * v.inner, some = rows_together<T>(v, m);
  const std::array<const std::common_type_t<X...>*, sizeof...(X)> rows{x...};
  detail::NearRows<Wide<T>, sizeof...(X)> near;
  for (std::int64_t first = begin; first < end; first += some) {
    const std::int64_t count = std::min(some, end - first);
    const std::int64_t step = (count + width - 1) / width * width;
    for (size_t i = 0; i < rows.size(); ++i)
      detail::rows_to_columns(rows[i] + first * n, n, count, near.rows, near.from[i], step);
    const View columns{1, v.n, v.inner * step};
    if constexpr (sizeof...(X) == 1) f(first, count, columns, near.from[0], near.to);
    if constexpr (sizeof...(X) == 2) f(first, count, columns, near.from[0], near.from[1], near.to);
    if (m > 0) detail::columns_to_rows(near.to, step, m, count, near.rows, y + first * m);
  }
}

// The same for all rows, shared out among threads.
template <class T, class F, class... X>
void for_short_rows(const View& v, const F& f, T* y, std::int64_t m, const X*... x) {
  const std::int64_t some = rows_together<T>(v, m), groups = (v.outer + some - 1) / some;
  parallel_for(groups, 1 + 16384 / (some * std::max(v.n * v.inner, m)),
               [&](std::int64_t begin, std::int64_t end) {
                 each_short_row(v, begin * some, std::min(end * some, v.outer), f, y, m, x...);
               });
}

}  // namespace ebb::cpu
