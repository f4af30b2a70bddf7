#include "ebb/ops/reduction/sum.h"

#include "ebb/ops/map.h"
#include "ebb/ops/short_rows.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor sum(const Tensor& x, const ReduceOptions& options) {
  require_floating("sum", "x", x);
  return scaled_sum("sum", x, Axes("sum", x.shape(), options), 1);
}

namespace {

Tensor repeat(Tensor dy, const Axes& axes, double factor, const Shape& shape) {
  for (size_t p = axes.passes.size(); p-- > 0;) {
    const View& view = axes.passes[p];
    Tensor dx =
        p == 0 ? empty(shape, dy.options()) : empty({view.outer, view.n, view.inner}, dy.options());
    run_as_is<cpu::repeat_along, gpu::repeat_along>(dy.device(), dy, view, p == 0 ? factor : 1.0,
                                                    dx);
    dy = dx;
  }
  return dy;
}

}  // namespace

Tensor scaled_sum(const char* op, const Tensor& x, const Axes& axes, double factor) {
  // Between two passes f32 for bf16, so that only the result is rounded to bf16.
  const Dtype between = x.dtype() == Dtype::bf16 ? Dtype::f32 : x.dtype();
  Tensor y = x;
  for (size_t p = 0; p < axes.passes.size(); ++p) {
    const bool last = p + 1 == axes.passes.size();
    const View& view = axes.passes[p];
    Tensor sums = last ? empty(axes.result, x.options())
                       : empty({view.outer, view.inner}, {between, x.device()});
    run_as_is<cpu::sum_along, gpu::sum_along>(x.device(), y, view, last ? factor : 1.0, sums);
    y = sums;
  }
  return record(op, y, {x}, [axes, factor, shape = x.shape()](const Tensor& dy) -> Gradients {
    return {repeat(dy, axes, factor, shape)};
  });
}

namespace {

using cpu::wide;
using cpu::Wide;

// The sum is a T before it is scaled, so that a mean overflows where its sum does, on both devices.
template <class T>
Wide<T> scaled(double sum, double factor) {
  return Wide<T>(factor * static_cast<double>(Wide<T>(sum)));
}

// Where there are more numbers than this, four add up in T before they do in double.
constexpr std::int64_t few = 64;

// Rows of no more than `few`, as many at a time as a register has doubles: what each has in the
// lanes of a register becomes columns, as adding these up takes less than the lanes of each row.
template <class T, class Y>
void sum_short_rows(const T* x, std::int64_t rows, std::int64_t n, double factor, Y* y) {
  using V = cpu::Simd<Wide<T>>;
  using D = cpu::Simd<double>;
  constexpr std::int64_t width = cpu::lanes<Wide<T>>;
  constexpr int together = cpu::lanes<double>;
  const std::int64_t whole = n / width * width;
  const auto rest = cpu::before<Wide<T>>(n - whole, 0);
  const auto add = [](V x, D sum) {
    if constexpr (cpu::double_parts<Wide<T>> == 2) sum = sum + cpu::as_double<1>(x);
    return sum + cpu::as_double<0>(x);
  };
  T near[together * few + width] = {};
  for (std::int64_t row = 0; row < rows; row += together) {
    const std::int64_t count = std::min<std::int64_t>(together, rows - row);
    const T* from = x + row * n;
    // The last are read whole registers at a time, too.
    if ((row + together) * n + width > rows * n)
      from = std::copy_n(from, count * n, near) - count * n;
    auto sums = cpu::detail::square_of(D(0.0).v);
#pragma GCC unroll 8
    for (int r = 0; r < together; ++r) {
      const T* at = from + r * n;
      D sum = 0.0;
      for (std::int64_t i = 0; i < whole; i += width) sum = add(V::load(at + i), sum);
      if (whole < n) sum = add(select(rest, V::load(at + whole), V(0)), sum);
      sums.packet[r] = sum.v;
    }
    Eigen::internal::ptranspose(sums);
    D all = D::of(sums.packet[0]);
    for (int r = 1; r < together; ++r) all = all + D::of(sums.packet[r]);
    double in_double[together];
    all.store(in_double);
    Wide<T> results[together];
#pragma omp simd
    for (int r = 0; r < together; ++r) results[r] = scaled<T>(in_double[r], factor);
    cpu::convert(results, count, y + row);
  }
}

template <class T, class Y>
void sum_rows(const T* x, const View& v, double factor, Y* y) {
  constexpr std::int64_t block = 1 << 16;
  const auto same = [](auto x) { return x; };
  if (v.n > 2 * block) {
    for (std::int64_t o = 0; o < v.outer; ++o) {
      const auto part = [=, row = x + o * v.n](std::int64_t begin, std::int64_t end) {
        return cpu::quick_sum_row<T>(end - begin, same, row + begin);
      };
      y[o] = Y(scaled<T>(block_sum<double>(v.n, block, part), factor));
    }
    return;
  }
  parallel_for(v.outer, 16384 / (v.n + 16), [&](std::int64_t begin, std::int64_t end) {
    if (v.n <= few) return sum_short_rows(x + begin * v.n, end - begin, v.n, factor, y + begin);
    for (std::int64_t o = begin; o < end; ++o)
      y[o] = Y(scaled<T>(cpu::quick_sum_row<T>(v.n, same, x + o * v.n), factor));
  });
}

// The columns of one matrix; up to 1,024 rows of them need no sums but those of their tile.
template <class T, class Y>
void sum_matrix(const T* x, std::int64_t rows, std::int64_t cols, double factor, Y* y) {
  constexpr std::int64_t tile = 512;
  const auto add = [=](std::int64_t first, std::int64_t last, std::int64_t column,
                       std::int64_t columns, double* sums) {
    const T* from = x + first * cols + column;
    const std::int64_t fours = last - first > few ? (last - first) / 4 : 0;
    cpu::add_rows(0, fours, columns, sums, [=](auto four, auto c) {
      const T* at = from + 4 * four * cols + c;
      return (wide(at[0]) + wide(at[cols])) + (wide(at[2 * cols]) + wide(at[3 * cols]));
    });
    cpu::add_rows(4 * fours, last - first, columns, sums,
                  [=](auto row, auto c) { return wide(from[row * cols + c]); });
  };
  if (rows > 1024) {
    const std::vector<double> sums = cpu::column_sums<1>(
        rows, cols, [&](auto first, auto last, auto column, auto columns, double** sums) {
          add(first, last, column, columns, sums[0]);
        });
    for (std::int64_t i = 0; i < cols; ++i)
      y[i] = Y(scaled<T>(sums[static_cast<size_t>(i)], factor));
    return;
  }
  parallel_for((cols + tile - 1) / tile, 32768 / (rows * tile + 1), [&](auto begin, auto end) {
    for (std::int64_t column = begin * tile; column < std::min(end * tile, cols); column += tile) {
      const std::int64_t columns = std::min(tile, cols - column);
      double sums[tile] = {};
      add(0, rows, column, columns, sums);
      for (std::int64_t c = 0; c < columns; ++c) y[column + c] = Y(scaled<T>(sums[c], factor));
    }
  });
}

template <class T, class Y>
void sum_columns(const T* x, const View& v, double factor, Y* y) {
  parallel_for(v.outer, 32768 / (v.n * v.inner + 16), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o)
      sum_matrix(x + o * v.n * v.inner, v.n, v.inner, factor, y + o * v.inner);
  });
}

// dx[o, k] = scale · dy[o], by runs of equal elements.
template <class T>
void repeat_rows(const T* dy, const View& v, Wide<T> scale, T* dx) {
  parallel_for(v.outer * v.n, 32768, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t o = i / v.n;
      const std::int64_t stop = std::min(end, (o + 1) * v.n);
      std::fill(dx + i, dx + stop, T(scale * wide(dy[o])));
      i = stop;
    }
  });
}

template <class T>
void scale_row(const T* dy, std::int64_t n, Wide<T> scale, T* dx) {
  cpu::map_row(
      dx, n, [scale = cpu::Simd<Wide<T>>(scale)](auto dy) { return scale * dy; }, dy);
}

template <class T>
void repeat_long_rows(const T* dy, const View& v, Wide<T> scale, T* dx) {
  parallel_for(v.outer * v.n, 32768 / (v.inner + 4), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      scale_row(dy + r / v.n * v.inner, v.inner, scale, dx + r * v.inner);
  });
}

// dx[o, k, i] = scale · dy[o, i]; short rows are laid near some times, and go out together.
template <class T>
void repeat_short_rows(const T* dy, const View& v, Wide<T> scale, T* dx) {
  const std::int64_t some = std::clamp<std::int64_t>(512 / v.inner, 1, v.n);
  const std::int64_t groups = (v.n + some - 1) / some;
  parallel_for(v.outer * groups, 32768 / (some * v.inner), [&](auto begin, auto end) {
    std::vector<T> near(static_cast<size_t>(some * v.inner));
    for (std::int64_t g = begin; g < end; ++g) {
      const std::int64_t o = g / groups, k = g % groups * some;
      for (std::int64_t j = 0; j < some && (g == begin || k == 0); ++j)
        scale_row(dy + o * v.inner, v.inner, scale, near.data() + j * v.inner);
      std::copy_n(near.data(), std::min(some, v.n - k) * v.inner, dx + (o * v.n + k) * v.inner);
    }
  });
}

template <class T, class Y>
void sum_elements(const T* x, const View& v, double factor, Y* y) {
  // A row of one register, half full or more, needs no other beside it.
  const bool few_lanes = v.inner > 1 || 2 * v.n <= cpu::lanes<Wide<T>>;
  if (few_lanes && cpu::are_short_rows<T>(v)) {
    const auto f = [=](auto, auto, const View& c, const auto* columns, auto* sums) {
      sum_matrix(columns, c.n, c.inner, factor, sums);
    };
    return cpu::for_short_rows(v, f, y, v.inner, x);
  }
  v.inner == 1 ? sum_rows(x, v, factor, y) : sum_columns(x, v, factor, y);
}

}  // namespace

void cpu::sum_along(const Tensor& x, const View& v, double factor, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.data<T>();
    if (y.dtype() == x.dtype()) return sum_elements(from, v, factor, y.data<T>());
    if constexpr (std::is_same_v<T, float>) sum_elements(from, v, factor, y.data<bf16>());
    if constexpr (std::is_same_v<T, bf16>) sum_elements(from, v, factor, y.data<float>());
  });
}

void cpu::repeat_along(const Tensor& dy, const View& v, double factor, Tensor& dx) {
  visit<float, double, bf16>(dy.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    const Wide<T> scale = Wide<T>(factor);
    if (are_short_rows<T>(v)) {
      const auto f = [n = v.n, scale](auto, auto, const View& c, const auto* dy, auto* dx) {
        for (std::int64_t k = 0; k < n; ++k) scale_row(dy, c.inner, scale, dx + k * c.inner);
      };
      return for_short_rows({v.outer, 1, v.inner}, f, to, v.n * v.inner, from);
    }
    if (v.inner == 1) return repeat_rows(from, v, scale, to);
    if (dx.numel() == 0) return;
    (v.inner < 16 ? repeat_short_rows<T> : repeat_long_rows<T>)(from, v, scale, to);
  });
}

}  // namespace ebb
