// Internal: not in <ebb/ebb.h>, not installed.
// How the CPU's softmax and log_softmax go along a dimension: by rows where it is the last one,
// else by tiles of neighbouring columns, which stay in the second-level cache. Short rows are laid
// side by side, as columns.
#pragma once
#include "ebb/ops/map.h"
#include "ebb/ops/short_rows.h"
#include "ebb/ops/sums.h"

namespace ebb::cpu {

inline std::int64_t line_grain(std::int64_t elements) { return 16384 / (elements + 8); }

inline constexpr std::int64_t most_rows = 16, most_columns = 256;  // that are worked on together

// f(at, count): `count` whole rows from element `at` on, few enough to stay in the first-level
// cache: what is done to one row need not wait for what was done to it before.
template <class F>
void for_rows(const View& v, F&& f) {
  if (v.n == 0) return;
  const std::int64_t some = std::clamp<std::int64_t>(2048 / v.n, 1, most_rows);
  parallel_for(v.outer, line_grain(v.n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; o += some) f(o * v.n, std::min(some, end - o));
  });
}

// f(at, width): columns at … at + width − 1, the elements of each `inner` apart.
template <class F>
void for_columns(const View& v, F&& f) {
  if (v.n == 0) return;
  const std::int64_t tile = std::clamp<std::int64_t>((1 << 16) / v.n / 32 * 32, 32, most_columns);
  const std::int64_t tiles = (v.inner + tile - 1) / tile;
  parallel_for(v.outer * tiles, line_grain(v.n * std::min(tile, v.inner)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t part = begin; part < end; ++part) {
                   const std::int64_t first = part % tiles * tile;
                   f(part / tiles * v.n * v.inner + first, std::min(tile, v.inner - first));
                 }
               });
}

// Columns that are fewer than a register's lanes become rows, near.
template <class T, class Rows, class... X>
void along_few_columns(const View& v, const Rows& rows, T* y, const X*... x) {
  const std::int64_t size = v.n * v.inner;
  parallel_for(v.outer, line_grain(size), [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> near(static_cast<size_t>((sizeof...(X) + 1) * size));
    for (std::int64_t o = begin; o < end; ++o) {
      T* free = near.data();
      const auto transposed = [&](const T* x) {
        for (std::int64_t i = 0; i < v.inner; ++i, free += v.n)
          gather_row(x + o * size + i, v.inner, v.n, free);
        return static_cast<const T*>(free - size);
      };
      std::apply(
          [&](auto... near) {
            rows(View{v.inner, v.n, 1}, near..., free);
          },
          std::tuple{transposed(x)...});
      for (std::int64_t k = 0; k < v.n; ++k)
        for (std::int64_t i = 0; i < v.inner; ++i)
          y[o * size + k * v.inner + i] = free[i * v.n + k];
    }
  });
}

// rows(v, x…, y) or columns(v, x…, y), of T or of what that is calculated with as.
template <class T, class Rows, class Columns, class... X>
void along_lines(const View& v, const Rows& rows, const Columns& columns, T* y, const X*... x) {
  // A row of between one register and two would take the exponentials of two; as columns, its own.
  const bool in_two = sizeof...(X) == 1 && v.inner == 1 && v.outer > 1 && v.n > lanes<Wide<T>> &&
                      v.n < 2 * lanes<Wide<T>>;
  if (in_two || are_short_rows<T>(v, sizeof...(X))) {
    const auto f = [&](auto, auto, const View& c, auto*... p) { columns(c, p...); };
    for_short_rows(v, f, y, v.n * v.inner, x...);
  } else if (v.inner == 1) {
    rows(v, x..., y);
  } else if (v.inner < lanes<Wide<T>>) {
    along_few_columns(v, rows, y, x...);
  } else {
    columns(v, x..., y);
  }
}

// m = max x and Σ exp(x − m) of rows; e[k] = exp(x[k] − m), unless e is null.
template <class T>
struct RowExponentials {
  Wide<T> max[most_rows];
  double sum[most_rows];

  RowExponentials(const T* x, std::int64_t n, std::int64_t count, Wide<T>* e = nullptr) {
    for (std::int64_t r = 0; r < count; ++r) max[r] = largest(x + r * n, n);
    for (std::int64_t r = 0; r < count; ++r) {
      const auto term = [m = Simd<Wide<T>>(max[r])](auto x) { return exp(x - m); };
      if (e)
        map_row(e + r * n, n, term, x + r * n);
      else
        sum[r] = quick_sum_row<T>(n, term, x + r * n);
    }
    const auto same = [](auto x) { return x; };
    for (std::int64_t r = 0; r < count && e; ++r) sum[r] = quick_sum_row<T>(n, same, e + r * n);
  }
};

// The same of `width` columns, at most near_elements; those of e are `step` apart.
template <class T>
struct ColumnExponentials {
  Wide<T> max[near_elements<T>];
  double sum[near_elements<T>];

  ColumnExponentials(const T* x, const View& v, std::int64_t width, Wide<T>* e, std::int64_t step) {
    constexpr std::int64_t near = 16;  // rows that stay in the first-level cache
    Wide<T>* m = max;
    map_row(
        m, width, [](auto x) { return x; }, x);
    std::fill_n(sum, width, 0.0);
    for (std::int64_t k = 1; k < v.n; ++k)
      map_row(
          m, width, [](auto m, auto x) { return select(m < x, x, m); }, m, x + k * v.inner);
    for (std::int64_t k = 0; k < v.n; k += near) {
      const std::int64_t end = std::min(v.n, k + near);
      for (std::int64_t i = k; i < end; ++i)
        map_row(
            e + i * step, width, [](auto x, auto m) { return exp(x - m); }, x + i * v.inner, m);
      add_rows(k, end, width, sum, [=](auto i, auto c) { return e[i * step + c]; });
    }
  }
};

// Where `rows` rows of `width` numbers, `step` apart in y, are calculated before they are rounded:
// near, for one use at a time on a thread; in y where they are not rounded at all.
template <class T>
struct Unrounded {
  Wide<T>* data;
  std::int64_t step;

  Unrounded(T* y, std::int64_t rows, std::int64_t width, std::int64_t step) {
    if constexpr (std::is_same_v<T, Wide<T>>) {
      *this = {y, step};
    } else {
      static thread_local std::vector<Wide<T>> near;
      near.resize(std::max(near.size(), static_cast<size_t>(rows * width)));
      *this = {near.data(), width};
    }
  }

 private:
  Unrounded(Wide<T>* data, std::int64_t step) : data(data), step(step) {}
};

}  // namespace ebb::cpu
