#include "ebb/ops/reduction/l2_norm.h"

#include "ebb/ops/map.h"
#include "ebb/ops/short_rows.h"
#include "ebb/ops/sums.h"

namespace ebb {
namespace {

Tensor norm_along(const Tensor& x, const View& view, const Shape& shape) {
  Tensor y = empty(shape, x.options());
  run<cpu::l2_norm, gpu::l2_norm>(x.device(), x, view, y);
  return record("l2_norm", y, {x},
                [x = Saved(x), y = Saved(y), view](const Tensor& dy) -> Gradients {
                  Tensor dx = empty_like(x);
                  run<cpu::l2_norm_backward, gpu::l2_norm_backward>(dy.device(), x.get(), y.get(),
                                                                    dy, view, dx);
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

double square(double x) { return x * x; }

template <class T>
void norm_rows(const T* x, const View& v, T* y) {
  constexpr std::int64_t long_row = 1 << 17;
  if (v.n >= long_row) {
    for (std::int64_t o = 0; o < v.outer; ++o) {
      const auto term = [row = x + o * v.n](std::int64_t i) {
        return square(static_cast<double>(row[i]));
      };
      y[o] = T(std::sqrt(cpu::long_sum_of(v.n, term)));
    }
    return;
  }
  parallel_for(v.outer, 32768 / (v.n + 16), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o)
      y[o] = T(std::sqrt(cpu::sum_row<T>(
          v.n, [](cpu::Simd<double> x) { return x * x; }, x + o * v.n)));
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
                        return square(static_cast<double>(from[row * step + c]));
                      });
      };
      std::vector<double> sums = cpu::column_sums<1>(v.n, v.inner, add);
      cpu::map_row(
          sums.data(), v.inner, [](auto square) { return sqrt(square); }, sums.data());
      std::copy_n(sums.data(), v.inner, y + o * v.inner);
    }
  });
}

}  // namespace

void cpu::l2_norm(const Tensor& x, const View& v, Tensor& y) {
  visit<float, double>(x.dtype(), "l2_norm", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    if (v.n == 1) {
      return map(y, x, [](auto x) { return abs(x); });
    } else if (are_short_rows<T>(v)) {
      const auto f = [](auto, auto, const View& c, const T* x, T* y) { norm_columns(x, c, y); };
      return for_short_rows(v, f, to, v.inner, from);
    }
    (v.inner == 1 ? norm_rows<T> : norm_columns<T>)(from, v, to);
  });
}

// A norm of 0 has a row of 0, which any other divisor leaves 0.
void cpu::l2_norm_backward(const Tensor& x, const Tensor& y, const Tensor& dy, const View& v,
                           Tensor& dx) {
  visit<float, double>(x.dtype(), "l2_norm", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    const T* norm = y.data<T>();
    const T* g = dy.data<T>();
    T* to = dx.data<T>();
    if (v.inner == 1 && are_short_rows<T>(v)) {
      const auto f = [=](auto first, auto count, const View& c, const T* x, T* dx) {
        const auto n = array(norm + first, count), up = array(g + first, count);
        for (std::int64_t k = 0; k < c.n * c.inner; k += c.inner)
          array(dx + k, count) = (n == T(0)).select(T(0), array(x + k, count) / n * up);
      };
      return for_short_rows(v, f, to, v.n, from);
    }
    if (v.inner == 1) {
      constexpr std::int64_t block = 4096;  // rows in parts, for one may be all of x
      const std::int64_t parts = (v.n + block - 1) / block;
      parallel_for(v.outer * parts, 32768 / (std::min(v.n, block) + 8),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t p = begin; p < end; ++p) {
                       const std::int64_t o = p / parts;
                       const std::int64_t first = p % parts * block;
                       const std::int64_t count = std::min(block, v.n - first);
                       const T divisor = norm[o] == 0 ? T(1) : norm[o];
                       const T scale = norm[o] == 0 ? T(0) : g[o];
                       array(to + o * v.n + first, count) =
                           array(from + o * v.n + first, count) / divisor * scale;
                     }
                   });
      return;
    }
    parallel_for(v.outer * v.n, 32768 / (v.inner + 4), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const auto n = array(norm + r / v.n * v.inner, v.inner);
        const auto up = array(g + r / v.n * v.inner, v.inner);
        array(to + r * v.inner, v.inner) =
            (n == T(0)).select(T(0), array(from + r * v.inner, v.inner) / n * up);
      }
    });
  });
}

}  // namespace ebb
