#include "ebb/ops/reduction/max.h"

#include <bit>
#include <limits>

#include "ebb/ops/short_rows.h"

namespace ebb {
namespace {

void require_elements(const Shape& shape, const ReduceOptions& options, const Axes& axes) {
  if (axes.count > 0) return;
  int empty_axis = 0;
  if (options.dim.empty())
    while (shape[empty_axis] != 0) ++empty_axis;
  for (const std::int64_t dim : options.dim) {
    const int d = wrap_dim("max", dim, shape.rank());
    if (shape[d] == 0) empty_axis = d;
  }
  require(false, Kind::value, "max", text("empty axis ", empty_axis, " has no largest element"),
          shape, "an extent of at least 1");
}

}  // namespace

Tensor max(const Tensor& x, const ReduceOptions& options) {
  require_floating("max", "x", x);
  const Axes axes("max", x.shape(), options);
  require_elements(x.shape(), options, axes);
  const bool wanted = grad_enabled() && x.requires_grad();
  require(!wanted || axes.count <= std::numeric_limits<std::int32_t>::max(), Kind::limit, "max",
          "too many elements for one result's gradient", axes.count, "at most 2^31 - 1");
  std::vector<Tensor> places;
  Tensor y = x;
  for (size_t p = 0; p < axes.passes.size(); ++p) {
    const View& view = axes.passes[p];
    const bool last = p + 1 == axes.passes.size();
    const Shape shape = last ? axes.result : Shape{view.outer, view.inner};
    Tensor index = wanted ? empty(shape, {Dtype::i32, x.device()}) : Tensor();
    Tensor largest = empty(shape, x.options());
    run_as_is<cpu::max_along, gpu::max_along>(x.device(), y, view, index, largest);
    places.push_back(index);
    y = largest;
  }
  return record(
      "max", y, {x}, [axes, places = std::move(places), shape = x.shape()](Tensor dy) -> Gradients {
        for (size_t p = axes.passes.size(); p-- > 0;) {
          const View& view = axes.passes[p];
          Tensor dx = zeros(p == 0 ? shape : Shape{view.outer, view.n, view.inner}, dy.options());
          run_as_is<cpu::place_along, gpu::place_along>(dy.device(), places[p], dy, view, dx);
          dy = dx;
        }
        return {dy};
      });
}

namespace {

using cpu::beats;
using cpu::wide;
using cpu::Wide;

// The number of a row in an element of a register that chooses it together with values, by bits.
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
cpu::Simd<T> place(std::int64_t k) {
  return std::bit_cast<T>(static_cast<Place<T>>(k));
}

// What `count` rows from number k on, `step` apart, make larger of `width` columns.
template <int count, class X, class T>
void look_at_rows(const X* x, std::int64_t k, std::int64_t step, std::int64_t width, T* best,
                  T* at) {
  constexpr std::int64_t lanes = cpu::lanes<T>;
  for (std::int64_t i = 0; i < width && width < lanes; ++i)
    for (int j = 0; j < count; ++j)
      if (beats(wide(x[j * step + i]), best[i]))
        best[i] = wide(x[j * step + i]), at[i] = std::bit_cast<T>(static_cast<Place<T>>(k + j));
  for (std::int64_t i = 0; i < width && width >= lanes; i += lanes) {
    const std::int64_t c = std::min(i, width - lanes);  // to look twice changes nothing
    auto value = cpu::Simd<T>::load(best + c), where = cpu::Simd<T>::load(at + c);
#pragma GCC unroll 4
    for (int j = 0; j < count; ++j) {
      const auto v = cpu::Simd<T>::load(x + j * step + c);
      const auto better = beats(v, value);
      value = select(better, v, value);
      where = select(better, place<T>(k + j), where);
    }
    value.store(best + c);
    where.store(at + c);
  }
}

// The largest of each of `width` columns, and in which of the n rows it is first. Four rows at a
// time: memory is read at more than one place, and `best` and `at` less often.
template <class X, class T>
void largest_columns(const X* x, std::int64_t n, std::int64_t step, std::int64_t width, T* best,
                     T* at) {
  cpu::map_row(
      best, width, [](auto x) { return x; }, x);
  std::fill_n(at, width, std::bit_cast<T>(Place<T>(0)));
  std::int64_t k = 1;
  for (; k + 4 <= n; k += 4) look_at_rows<4>(x + k * step, k, step, width, best, at);
  for (; k < n; ++k) look_at_rows<1>(x + k * step, k, step, width, best, at);
}

template <class T>
struct Largest {
  T value;
  std::int64_t at;
};

// Of one row; of equals the first, which shows in the place and in the sign of 0, as of NaN. The
// last register overlaps the one before it. Lanes count in T, up to 2^24.
template <class T>
Largest<Wide<T>> first_largest(const T* x, std::int64_t n, bool place) {
  using W = Wide<T>;
  using V = cpu::Simd<W>;
  constexpr std::int64_t width = cpu::lanes<W>;
  if (n < width) {
    std::int64_t at = 0;
    for (std::int64_t k = 1; k < n; ++k)
      if (beats(wide(x[k]), wide(x[at]))) at = k;
    return {wide(x[at]), at};
  }
  const V end = V::load(x + n - width);
  V most[4] = {end, end, end, end};
  V zero[4] = {end * W(0), W(0), W(0), W(0)};  // NaN where there is NaN, or infinity
  const auto see = [&](int k, std::int64_t i) {
    const V v = V::load(x + i);
    most[k] = V::of(Eigen::internal::pmax(v.v, most[k].v));
    zero[k] = v * W(0) + zero[k];
  };
  std::int64_t i = 0;
  for (; i + 4 * width <= n; i += 4 * width)
    for (int k = 0; k < 4; ++k) see(k, i + k * width);
  for (; i + width <= n; i += width) see(0, i);
  const V zeros = (zero[0] + zero[1]) + (zero[2] + zero[3]);
  const bool nan = Eigen::internal::predux(zeros.v) != 0 &&
                   std::any_of(x, x + n, [](T v) { return wide(v) != wide(v); });
  for (int k = 1; k < 4; ++k) most[0] = V::of(Eigen::internal::pmax(most[0].v, most[k].v));
  const W best = Eigen::internal::predux_max(most[0].v);
  if (!place && !nan && best != 0) return {best, 0};
  const V wanted = best, none = W(n);
  V first = none;
  const auto look = [&](std::int64_t i) {
    const V v = V::load(x + i);
    const auto is = nan ? not_at_most(v, v) : v == wanted;
    const V at = select(is, cpu::lane_numbers<W>() + V(W(i)), none);
    first = select(at < first, at, first);
  };
  const auto found = [&] { return Eigen::internal::predux_min(first.v) < W(n); };
  constexpr std::int64_t block = 256 * width;  // after each of which it may end
  for (i = 0; i + width <= n && (i == 0 || i % block != 0 || !found()); i += width) look(i);
  if (i < n) look(n - width);
  const auto at = static_cast<std::int64_t>(Eigen::internal::predux_min(first.v));
  return {wide(x[at]), at};
}

// Results and, if `index` is not null, their places.
template <class T, class Y>
void store(const T* best, const T* at, std::int64_t count, Y* y, std::int32_t* index) {
  cpu::map_row(
      y, count, [](auto x) { return x; }, best);
  for (std::int64_t i = 0; i < count && index; ++i)
    index[i] = static_cast<std::int32_t>(std::bit_cast<Place<T>>(at[i]));
}

template <class T>
void max_of_columns(const T* x, const View& v, std::int32_t* index, T* y) {
  constexpr std::int64_t widest = 512;  // columns whose largest elements stay in the cache
  const std::int64_t tiles = (v.inner + widest - 1) / widest;
  const std::int64_t grain = 1 + 16384 / (v.n * std::min(widest, v.inner) + 1);
  parallel_for(v.outer * tiles, grain, [&](std::int64_t begin, std::int64_t end) {
    Wide<T> best[widest], at[widest];
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t o = tile / tiles, first = tile % tiles * widest;
      const std::int64_t width = std::min(widest, v.inner - first), to = o * v.inner + first;
      largest_columns(x + o * v.n * v.inner + first, v.n, v.inner, width, best, at);
      store(best, at, width, y + to, index ? index + to : nullptr);
    }
  });
}

template <class T>
void max_of_short_rows(const T* x, const View& v, std::int32_t* index, T* y) {
  const auto f = [=](auto first, auto count, const View& c, const auto* columns, auto* best) {
    Wide<T> at[cpu::near_elements<T>];
    largest_columns(columns, c.n, c.inner, c.inner, best, at);
    store(best, at, count, y + first, index ? index + first : nullptr);
  };
  cpu::for_short_rows(v, f, y, 0, x);
}

// Long rows in blocks, so that threads may share one.
template <class T>
void max_of_rows(const T* x, const View& v, std::int32_t* index, T* y) {
  const std::int64_t blocks = (v.n + 65535) / 65536;
  if (blocks == 1) {
    parallel_for(v.outer, 1 + 16384 / v.n, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin; o < end; ++o) {
        const auto [value, at] = first_largest(x + o * v.n, v.n, index != nullptr);
        y[o] = T(value);
        if (index) index[o] = static_cast<std::int32_t>(at);
      }
    });
    return;
  }
  std::vector<Largest<Wide<T>>> found(static_cast<size_t>(v.outer * blocks));
  parallel_for(v.outer * blocks, 1 + 16384 * blocks / v.n, [&](auto begin, auto end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t first = v.n * (b % blocks) / blocks;
      const std::int64_t last = v.n * (b % blocks + 1) / blocks;
      const auto [value, at] =
          first_largest(x + b / blocks * v.n + first, last - first, index != nullptr);
      found[static_cast<size_t>(b)] = {value, first + at};
    }
  });
  for (std::int64_t o = 0; o < v.outer; ++o) {
    Largest<Wide<T>> best = found[static_cast<size_t>(o * blocks)];
    for (std::int64_t b = 1; b < blocks; ++b) {
      const Largest<Wide<T>>& next = found[static_cast<size_t>(o * blocks + b)];
      if (beats(next.value, best.value)) best = next;
    }
    y[o] = T(best.value);
    if (index) index[o] = static_cast<std::int32_t>(best.at);
  }
}

}  // namespace

void cpu::max_along(const Tensor& x, const View& v, Tensor& index, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "max", [&](auto zero) {
    using T = decltype(zero);
    std::int32_t* places = index.defined() ? index.data<std::int32_t>() : nullptr;
    const auto max_of = v.inner != 1           ? max_of_columns<T>
                        : are_short_rows<T>(v) ? max_of_short_rows<T>
                                               : max_of_rows<T>;
    max_of(x.data<T>(), v, places, y.data<T>());
  });
}

void cpu::place_along(const Tensor& index, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "max", [&](auto zero) {
    using T = decltype(zero);
    const std::int32_t* places = index.data<std::int32_t>();
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    parallel_for(v.kept(), 32768, [=](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t o = i / v.inner;
        to[(o * v.n + places[i]) * v.inner + i - o * v.inner] = from[i];
      }
    });
  });
}

}  // namespace ebb
