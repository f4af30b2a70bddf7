// Internal: not in <ebb/ebb.h>, not installed.
// CPU element-wise maps: y[i] = f(x[i], …), the formula on SIMD registers, split over threads.
//
//   map(y, x, [](auto x) { return x / (1 + exp(-x)); });
//   map(std::tie(da, db), a, b, dy,
//       [](auto a, auto b, auto dy) { return std::array{dy * b, dy * a}; });
//
// All tensors are f32, f64 or bf16, which is calculated with as f32. A formula that asks for it
// gets a number of their type first:
//
//   map(y, x, [](auto type, auto x) { return near_enough(x, type); });
#pragma once
#include <algorithm>
#include <array>
#include <tuple>

#include "ebb/core/parallel.h"
#include "ebb/ops/simd.h"

namespace ebb::cpu {

inline constexpr std::int64_t map_grain = 1 << 15;

template <class From, class To>
void convert(const From* from, std::int64_t n, To* to) {
  if constexpr (std::is_same_v<Wide<From>, Wide<To>>) {
    using V = Simd<Wide<To>>;
    constexpr std::int64_t width = lanes<Wide<To>>;
    std::int64_t i = 0;
    for (; i + width <= n; i += width) V::load(from + i).store(to + i);
    if (i < n) V::load(from + i, n - i).store(to + i, n - i);
  } else {
    for (std::int64_t i = 0; i < n; ++i) to[i] = To(from[i]);
  }
}

namespace detail {

template <class T, class Value, size_t outputs, class... Count>
void store(const std::array<Value, outputs>& values, const std::array<T*, outputs>& y,
           std::int64_t i, Count... count) {
  for (size_t k = 0; k < outputs; ++k) values[k].store(y[k] + i, count...);
}
template <class T, class Value, class... Count>
void store(Value value, const std::array<T*, 1>& y, std::int64_t i, Count... count) {
  value.store(y[0] + i, count...);
}

// The last register overlaps the one before it, and is calculated first, as y may be x. All by
// value: what lies behind references is read again after every store, which could have changed it.
template <class T, size_t outputs, class Formula, class... X>
void map_elements(std::array<T*, outputs> y, std::int64_t n, Formula formula, const X*... x) {
  using Register = Simd<Wide<T>>;
  constexpr std::int64_t width = lanes<Wide<T>>;
  if (n < width) return store(formula(Register::load(x, n)...), y, 0, n);
  const std::int64_t full = n / width * width;
  const auto last = formula(Register::load(x + n - width)...);
  for (std::int64_t i = 0; i < full; i += width) store(formula(Register::load(x + i)...), y, i);
  if (full < n) store(last, y, n - width);
}

template <size_t outputs, class Formula, class... X>
void map_tensors(const std::array<Tensor*, outputs>& y, const Formula& formula, const X&... x) {
  const std::int64_t n = y[0]->numel();
  visit<float, double, bf16>(y[0]->dtype(), "map", [&](auto zero) {
    using T = decltype(zero);
    constexpr std::int64_t width = lanes<Wide<T>>;
    parallel_for((n + width - 1) / width, map_grain / width, [&](auto begin, auto end) {
      const std::int64_t at = begin * width;
      std::array<T*, outputs> to;
      for (size_t k = 0; k < outputs; ++k) to[k] = y[k]->template data<T>() + at;
      const auto typed = [formula](auto... v) {
        if constexpr (std::is_invocable_v<const Formula&, decltype(v)...>)
          return formula(v...);
        else
          return formula(T(), v...);
      };
      map_elements<T>(to, std::min(end * width, n) - at, typed, (x.template data<T>() + at)...);
    });
  });
}

// f(the last of `all`, the others…).
template <class F, class... All>
void last_first(const F& f, const All&... all) {
  const auto tuple = std::tie(all...);
  constexpr size_t last = sizeof...(All) - 1;
  [&]<size_t... i>(std::index_sequence<i...>) { f(std::get<last>(tuple), std::get<i>(tuple)...); }
  (std::make_index_sequence<last>());
}

}  // namespace detail

// map(y, x, …, formula).
template <class... Args>
void map(Tensor& y, const Args&... args) {
  detail::last_first([&](const auto&... a) { detail::map_tensors<1>({&y}, a...); }, args...);
}

template <class... Y, class... Args>
void map(const std::tuple<Y&...>& y, const Args&... args) {
  const auto to = std::apply([](auto&... t) { return std::array{&t...}; }, y);
  detail::last_first([&](const auto&... a) { detail::map_tensors(to, a...); }, args...);
}

// The same for a row of n elements, on this thread; of y's type, or what that is calculated with
// as.
template <class T, class Formula, class... X>
void map_row(T* y, std::int64_t n, const Formula& formula, const X*... x) {
  detail::map_elements<T, 1>({y}, n, formula, x...);
}

namespace detail {

template <int part, class Formula, class... X>
Simd<double> double_term(const Formula& formula, X... x) {
  if constexpr (std::is_invocable_v<const Formula&, X...>) {
    return as_double<part>(formula(x...));
  } else {
    return formula(as_double<part>(x)...);
  }
}

}  // namespace detail

// Σ f(x, …) over a row of n elements, in double; a formula of Simd<double> is calculated in double,
// too. The last register overlaps the one before it, and counts what is new.
template <class T, class Formula, class... X>
double sum_row(std::int64_t n, const Formula& formula, const X*... x) {
  using W = Wide<T>;
  using V = Simd<W>;
  constexpr std::int64_t width = lanes<W>;
  constexpr int last = double_parts<W> - 1;
  // Two registers' halves, so that an addition need not wait for the one before it.
  Simd<double> a[2] = {0.0, 0.0}, b[2] = {0.0, 0.0};
  const auto add = [&](int k, auto... x) {
    a[k] = a[k] + detail::double_term<0>(formula, x...);
    if constexpr (last == 1) b[k] = b[k] + detail::double_term<1>(formula, x...);
  };
  const auto add_where = [&](V one, auto... x) {
    const Simd<double> limit = 1.0;
    a[1] = a[1] + zero_where(as_double<0>(one) < limit, detail::double_term<0>(formula, x...));
    if constexpr (last == 1)
      b[1] = b[1] + zero_where(as_double<1>(one) < limit, detail::double_term<1>(formula, x...));
  };
  std::int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    add(0, V::load(x + i)...);
    add(1, V::load(x + i + width)...);
  }
  if (i + width <= n) {
    add(0, V::load(x + i)...);
    i += width;
  }
  if (i < n && n < width) {
    add_where(V(W(n)) - lane_numbers<W>(), V::load(x, n)...);
  } else if (i < n) {
    add_where(lane_numbers<W>() - V(W(width - n + i - 1)), V::load(x + n - width)...);
  }
  return Eigen::internal::predux(((a[0] + b[0]) + (a[1] + b[1])).v);
}

// Σ x over a row of n elements.
template <class T>
double row_sum(const T* x, std::int64_t n) {
  return sum_row<T>(
      n, [](auto x) { return x; }, x);
}

// The same for f(x, …) that may add up in T, by fours, before they do in double: a quarter of the
// conversions, which are the slowest part.
template <class T, class Formula, class... X>
double quick_sum_row(std::int64_t n, const Formula& formula, const X*... x) {
  using V = Simd<Wide<T>>;
  constexpr std::int64_t width = lanes<Wide<T>>;
  if (n < 4 * width) return sum_row<T>(n, formula, x...);
  Simd<double> a = 0.0, b = 0.0;
  std::int64_t i = 0;
  for (; i + 4 * width <= n; i += 4 * width) {
    const auto at = [=](int k) { return formula(V::load(x + i + k * width)...); };
    const auto four = (at(0) + at(1)) + (at(2) + at(3));
    a = a + as_double<0>(four);
    if constexpr (double_parts<Wide<T>> == 2) b = b + as_double<1>(four);
  }
  return Eigen::internal::predux((a + b).v) + sum_row<T>(n - i, formula, (x + i)...);
}

// The largest of a row, by four registers that need not wait for each other. Should it miss a NaN,
// sums do not.
template <class T>
Wide<T> largest(const T* x, std::int64_t n) {
  using V = Simd<Wide<T>>;
  constexpr std::int64_t width = lanes<Wide<T>>;
  if (n < width) {
    Wide<T> best = wide(x[0]);
    for (std::int64_t i = 1; i < n; ++i) best = std::max(best, wide(x[i]));
    return best;
  }
  const V last = V::load(x + n - width);
  V best[4] = {last, last, last, last};
  const auto look = [&](int k, std::int64_t i) {
    best[k] = V::of(Eigen::internal::pmax(best[k].v, V::load(x + i).v));
  };
  std::int64_t i = 0;
  for (; i + 4 * width <= n; i += 4 * width)
    for (int k = 0; k < 4; ++k) look(k, i + k * width);
  for (; i + width <= n; i += width) look(0, i);
  for (int k = 1; k < 4; ++k) best[0].v = Eigen::internal::pmax(best[0].v, best[k].v);
  return Eigen::internal::predux_max(best[0].v);
}

}  // namespace ebb::cpu
