#include "ebb/ops/reduction/max.h"

#include <limits>

#include "ebb/core/parallel.h"

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
    run<cpu::max_along, gpu::max_along>(x.device(), y, view, index, largest);
    places.push_back(index);
    y = largest;
  }
  return record(
      "max", y, {x}, [axes, places = std::move(places), shape = x.shape()](Tensor dy) -> Gradients {
        for (size_t p = axes.passes.size(); p-- > 0;) {
          const View& view = axes.passes[p];
          Tensor dx = zeros(p == 0 ? shape : Shape{view.outer, view.n, view.inner}, dy.options());
          run<cpu::place_along, gpu::place_along>(dy.device(), places[p], dy, view, dx);
          dy = dx;
        }
        return {dy};
      });
}

namespace {

template <class T>
bool larger(T x, T best) {
  return x > best || (x != x && best == best);
}

// One row; four lanes that look at every fourth element break the chain of comparisons.
template <class T>
std::int64_t first_largest(const T* x, std::int64_t n) {
  constexpr std::int64_t lanes = 4;
  if (n < 2 * lanes) {
    std::int64_t at = 0;
    for (std::int64_t k = 1; k < n; ++k)
      if (larger(x[k], x[at])) at = k;
    return at;
  }
  std::int64_t at[lanes] = {0, 1, 2, 3};
  T best[lanes] = {x[0], x[1], x[2], x[3]};
  for (std::int64_t k = lanes; k < n; k += lanes)
    for (std::int64_t l = 0; l < std::min(lanes, n - k); ++l)
      if (larger(x[k + l], best[l])) best[l] = x[k + l], at[l] = k + l;
  std::int64_t first = 0;
  for (std::int64_t l = 1; l < lanes; ++l) {
    const bool level = !larger(best[l], best[first]) && !larger(best[first], best[l]);
    if (larger(best[l], best[first]) || (level && at[l] < at[first])) first = l;
  }
  return at[first];
}

// The largest of each column of an [n, inner] matrix: row by row, as memory lies.
template <class T>
void largest_columns(const T* x, const View& v, std::int64_t begin, std::int64_t end,
                     std::int32_t* index, T* y) {
  std::copy(x + begin, x + end, y + begin);
  if (index) std::fill(index + begin, index + end, 0);
  for (std::int64_t k = 1; k < v.n; ++k)
    for (std::int64_t i = begin; i < end; ++i) {
      const T value = x[k * v.inner + i];
      if (!larger(value, y[i])) continue;
      y[i] = value;
      if (index) index[i] = static_cast<std::int32_t>(k);
    }
}

}  // namespace

void cpu::max_along(const Tensor& x, const View& v, Tensor& index, Tensor& y) {
  visit<float, double>(x.dtype(), "max", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    std::int32_t* places = index.defined() ? index.data<std::int32_t>() : nullptr;
    const std::int64_t tile = v.inner == 1 ? 1 : std::min<std::int64_t>(v.inner, 512);
    const std::int64_t tiles = v.inner == 0 ? 0 : (v.inner + tile - 1) / tile;
    const std::int64_t grain = 1 + 32768 / (v.n * tile + 1);
    parallel_for(v.outer * tiles, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) {
        const std::int64_t o = part / tiles;
        const std::int64_t first = part % tiles * tile;
        const T* rows = from + o * v.n * v.inner;
        std::int32_t* at = places ? places + o * v.inner : nullptr;
        if (v.inner > 1) {
          largest_columns(rows, v, first, std::min(first + tile, v.inner), at, to + o * v.inner);
          continue;
        }
        const std::int64_t k = first_largest(rows, v.n);
        to[o] = rows[k];
        if (at) *at = static_cast<std::int32_t>(k);
      }
    });
  });
}

void cpu::place_along(const Tensor& index, const Tensor& dy, const View& v, Tensor& dx) {
  visit<float, double>(dy.dtype(), "max", [&](auto zero) {
    using T = decltype(zero);
    const std::int32_t* places = index.data<std::int32_t>();
    parallel_for(v.kept(), 32768, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t o = i / v.inner;
        dx.data<T>()[(o * v.n + places[i]) * v.inner + i - o * v.inner] = dy.data<T>()[i];
      }
    });
  });
}

}  // namespace ebb
