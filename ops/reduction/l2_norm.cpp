#include "ebb/ops/reduction/l2_norm.h"

#include "ebb/ops/map.h"
#include "ebb/ops/short_rows.h"
#include "ebb/ops/sums.h"

namespace ebb {
namespace {

Tensor norm_along(const Tensor& x, const View& view, const Shape& shape) {
  Tensor y = empty(shape, x.options());
  run_as_is<cpu::l2_norm, gpu::l2_norm>(x.device(), x, view, y);
  return record("l2_norm", y, {x},
                [x = Saved(x), y = Saved(y), view](const Tensor& dy) -> Gradients {
                  Tensor dx = empty_like(x);
                  run_as_is<cpu::l2_norm_backward, gpu::l2_norm_backward>(dy.device(), x.get(),
                                                                          y.get(), dy, view, dx);
                  return {dx};
                });
}

}  // namespace

Tensor l2_norm(const Tensor& x, const ReduceOptions& options) {
  require_floating("l2_norm", "x", x);
  const Axes axes("l2_norm", x.shape(), options);
  Tensor y = x;
  for (size_t p = 0; p < axes.passes.size(); ++p) {
    const View& view = axes.passes[p];
    const bool last = p + 1 == axes.passes.size();
    y = norm_along(y, view, last ? axes.result : Shape{view.outer, view.inner});
  }
  return y;
}

namespace {

using cpu::Simd;
using cpu::wide;
using cpu::Wide;

template <class T>
T root(double square) {
  return T(Wide<T>(std::sqrt(square)));
}

template <class T>
void norm_rows(const T* x, const View& v, T* y) {
  constexpr std::int64_t block = 1 << 16;
  const auto squares = [](const T* x, std::int64_t n) {
    return cpu::sum_row<T>(
        n, [](Simd<double> x) { return x * x; }, x);
  };
  if (v.n >= 2 * block) {
    for (std::int64_t o = 0; o < v.outer; ++o) {
      const auto part = [=, row = x + o * v.n](auto begin, auto end) {
        return squares(row + begin, end - begin);
      };
      y[o] = root<T>(block_sum<double>(v.n, block, part));
    }
    return;
  }
  parallel_for(v.outer, 32768 / (v.n + 16), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) y[o] = root<T>(squares(x + o * v.n, v.n));
  });
}

template <class T>
void norm_columns(const T* x, const View& v, T* y) {
  parallel_for(v.outer, 32768 / (v.n * v.inner + 16), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      const T* matrix = x + o * v.n * v.inner;
      const auto add = [&](std::int64_t first, std::int64_t last, std::int64_t column,
                           std::int64_t columns, double** sums) {
        cpu::add_rows(first, last, columns, sums[0],
                      [from = matrix + column, step = v.inner](auto row, auto c) {
                        const auto x = static_cast<double>(wide(from[row * step + c]));
                        return x * x;
                      });
      };
      std::vector<double> sums = cpu::column_sums<1>(v.n, v.inner, add);
      cpu::map_row(
          sums.data(), v.inner, [](auto square) { return sqrt(square); }, sums.data());
      std::transform(sums.begin(), sums.end(), y + o * v.inner,
                     [](double norm) { return T(Wide<T>(norm)); });
    }
  });
}

// dx of n elements that have one norm, or each its own. A norm of 0 has a row of 0, which any other
// divisor leaves 0.
template <class T, class N>
void gradient(const T* x, std::int64_t n, const N* norm, const N* dy, bool each, T* dx) {
  const auto of = [](auto x, auto norm, auto dy) {
    using V = decltype(x);
    return select(norm == V(0), V(0), x / norm * dy);
  };
  if (each) return cpu::map_row(dx, n, of, x, norm, dy);
  const Simd<Wide<T>> one = wide(*norm), up = wide(*dy);
  cpu::map_row(
      dx, n, [=](auto x) { return of(x, one, up); }, x);
}

template <class T>
void backward(const View& v, const T* x, const T* norm, const T* dy, T* dx) {
  if (v.inner == 1 && cpu::are_short_rows<T>(v)) {
    const auto f = [=](auto first, auto count, const View& c, const auto* x, auto* dx) {
      for (std::int64_t k = 0; k < c.n * c.inner; k += c.inner)
        gradient(x + k, count, norm + first, dy + first, true, dx + k);
    };
    return cpu::for_short_rows(v, f, dx, v.n, x);
  }
  if (v.inner != 1)
    return parallel_for(v.outer * v.n, 32768 / (v.inner + 4), [&](auto begin, auto end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t at = r / v.n * v.inner;
        gradient(x + r * v.inner, v.inner, norm + at, dy + at, true, dx + r * v.inner);
      }
    });
  constexpr std::int64_t block = 4096;  // rows in parts, for one may be all of x
  const std::int64_t parts = (v.n + block - 1) / block;
  parallel_for(v.outer * parts, 32768 / (std::min(v.n, block) + 8), [&](auto begin, auto end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t o = p / parts, first = p % parts * block, at = o * v.n + first;
      gradient(x + at, std::min(block, v.n - first), norm + o, dy + o, false, dx + at);
    }
  });
}

}  // namespace

void cpu::l2_norm(const Tensor& x, const View& v, Tensor& y) {
  if (v.n == 1) return map(y, x, [](auto x) { return abs(x); });
  visit<float, double, bf16>(x.dtype(), "l2_norm", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    if (are_short_rows<T>(v)) {
      const auto f = [](auto, auto, const View& c, const auto* x, auto* y) {
        norm_columns(x, c, y);
      };
      return for_short_rows(v, f, to, v.inner, from);
    }
    (v.inner == 1 ? norm_rows<T> : norm_columns<T>)(from, v, to);
  });
}

void cpu::l2_norm_backward(const Tensor& x, const Tensor& y, const Tensor& dy, const View& v,
                           Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), "l2_norm", [&](auto zero) {
    using T = decltype(zero);
    backward(v, x.data<T>(), y.data<T>(), dy.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
