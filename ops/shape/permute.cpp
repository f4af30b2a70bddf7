#include "ebb/ops/shape/permute.h"

#include <numeric>
#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/shape/runs.h"
#include "ebb/ops/side_by_side.h"

namespace ebb {
namespace {

using Axes = std::array<int, Shape::max_rank>;

Gather gather_for(const Shape& x, const Axes& axes) {
  Gather g;
  for (int d = 0; d < x.rank(); ++d) {
    const std::int64_t extent = x[axes[static_cast<size_t>(d)]];
    const std::int64_t step = x.product(axes[static_cast<size_t>(d)] + 1, x.rank());
    if (extent == 1) continue;
    const auto last = static_cast<size_t>(g.rank - 1);
    if (g.rank > 0 && g.steps[last] == extent * step) {
      g.extents[last] *= extent;
      g.steps[last] = step;
      continue;
    }
    g.extents[static_cast<size_t>(g.rank)] = extent;
    g.steps[static_cast<size_t>(g.rank)] = step;
    ++g.rank;
  }
  return g;
}

Tensor permuted(const char* op, const Tensor& x, const Axes& axes) {
  std::array<std::int64_t, Shape::max_rank> dims{};
  for (int d = 0; d < x.rank(); ++d)
    dims[static_cast<size_t>(d)] = x.shape()[axes[static_cast<size_t>(d)]];
  Tensor y = empty(Shape(std::span<const std::int64_t>(dims.data(), static_cast<size_t>(x.rank()))),
                   x.options());
  if (y.numel() == 0) return y;
  run_as_is<cpu::permute, gpu::permute>(x.device(), op, gather_for(x.shape(), axes), x, y);
  return y;
}

Tensor permute_recorded(const char* op, const Tensor& x, const Axes& axes) {
  return record(op, permuted(op, x, axes), {x},
                [op, axes, rank = x.rank()](const Tensor& dy) -> Gradients {
                  Axes back{};
                  for (int d = 0; d < rank; ++d)
                    back[static_cast<size_t>(axes[static_cast<size_t>(d)])] = d;
                  return {permuted(op, dy, back)};
                });
}

}  // namespace

Tensor permute(const Tensor& x, std::span<const std::int64_t> dims) {
  require_defined("permute", "x", x);
  require(static_cast<int>(dims.size()) == x.rank(), Kind::value, "permute",
          "each axis must be named once", text(dims.size(), " axes for ", x.shape()),
          text(x.rank(), " axes"));
  Axes axes{};
  std::array<bool, Shape::max_rank> seen{};
  for (size_t d = 0; d < dims.size(); ++d) {
    axes[d] = wrap_dim("permute", dims[d], x.rank());
    bool& known = seen[static_cast<size_t>(axes[d])];
    require(!known, Kind::value, "permute", "each axis must be named once",
            text("axis ", axes[d], " repeated"), "a permutation");
    known = true;
  }
  return permute_recorded("permute", x, axes);
}

Tensor transpose(const Tensor& x, std::int64_t dim0, std::int64_t dim1) {
  require_defined("transpose", "x", x);
  Axes axes{};
  std::iota(axes.begin(), axes.end(), 0);
  const int a = wrap_dim("transpose", dim0, x.rank());
  const int b = wrap_dim("transpose", dim1, x.rank());
  std::swap(axes[static_cast<size_t>(a)], axes[static_cast<size_t>(b)]);
  return permute_recorded("transpose", x, axes);
}

namespace {

// Dimensions of y that are counted through, the last one fastest, and what a step of each is.
struct Count {
  int rank = 0;
  std::array<std::int64_t, Shape::max_rank> extents{}, in_x{}, in_y{};

  void add(std::int64_t extent, std::int64_t x, std::int64_t y) {
    const auto d = static_cast<size_t>(rank++);
    extents[d] = extent;
    in_x[d] = x;
    in_y[d] = y;
  }
  // Where the number `index` is in x and in y.
  std::pair<std::int64_t, std::int64_t> at(std::int64_t index) const {
    std::int64_t x = 0, y = 0;
    for (auto d = static_cast<size_t>(rank); d-- > 0; index /= extents[d]) {
      x += index % extents[d] * in_x[d];
      y += index % extents[d] * in_y[d];
    }
    return {x, y};
  }
};

// Rows of y that are rows of x, too: those of y's last dimension but one at regular distances.
template <class Word>
void copy_rows(const Count& outer, std::int64_t rows, std::int64_t step, std::int64_t length,
               std::int64_t size, const Word* x, Word* y) {
  parallel_for(size / length, 1 + (1 << 14) / length, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end;) {
      const Word* from = x + outer.at(row / rows).first + row % rows * step;
      const std::int64_t stop = std::min(end, (row / rows + 1) * rows);
      for (; row < stop; ++row, from += step) cpu::copy_row(from, length, y + row * length);
    }
  });
}

// f(n), where a small n is known to the compiler, which makes SIMD of loops that long.
template <class F>
void with_few(std::int64_t n, F&& f) {
  switch (n) {
    case 2:
      return f(std::integral_constant<std::int64_t, 2>());
    case 3:
      return f(std::integral_constant<std::int64_t, 3>());
    case 4:
      return f(std::integral_constant<std::int64_t, 4>());
    default:
      return f(n);
  }
}

// y[c · y_step + r] = x[r · x_step + c]. By way of `near`, so that every line of memory is touched
// once: many that lie a power of two apart do not stay in a cache together.
template <class Word>
void transpose_tile(const Word* x, std::int64_t x_step, std::int64_t rows, std::int64_t cols,
                    Word* near, Word* y, std::int64_t y_step) {
  if (rows <= 4 && y_step == rows) {  // a few planes become neighbours
    return with_few(rows, [=](auto rows) {
      for (std::int64_t c = 0; c < cols; ++c)
        for (std::int64_t r = 0; r < rows; ++r) y[c * rows + r] = x[r * x_step + c];
    });
  }
  if (x_step == cols)
    std::copy_n(x, rows * cols, near);
  else
    for (std::int64_t r = 0; r < rows; ++r) cpu::copy_row(x + r * x_step, cols, near + r * cols);
  if constexpr (sizeof(Word) >= 4) {
    constexpr std::int64_t width = cpu::lanes<Word>;
    if (rows >= width && cols >= width) {  // the last squares overlap those before them
      for (std::int64_t c = 0; c < cols; c += width)
        for (std::int64_t r = 0; r < rows; r += width) {
          const std::int64_t i = std::min(r, rows - width), j = std::min(c, cols - width);
          cpu::transpose_square(near + i * cols + j, cols, y + j * y_step + i, y_step);
        }
      return;
    }
  }
  const auto move = [=](std::int64_t r, std::int64_t c) { y[c * y_step + r] = near[r * cols + c]; };
  if (rows >= cols) {
    for (std::int64_t c = 0; c < cols; ++c)
      for (std::int64_t r = 0; r < rows; ++r) move(r, c);
  } else {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) move(r, c);
  }
}

// Tiles of the dimensions that are the fastest in y, n elements `x_step` apart in x, and in x, m
// elements `y_step` apart in y.
template <class Word>
void transpose_tiles(const Count& outer, std::int64_t n, std::int64_t x_step, std::int64_t m,
                     std::int64_t y_step, std::int64_t size, const Word* x, Word* y) {
  constexpr std::int64_t side = 512 / sizeof(Word);  // long runs of y, as writing is what waits
  constexpr std::int64_t most = 8192 / sizeof(Word);
  const std::int64_t cols = std::min(m, most / std::min(n, side));
  const std::int64_t rows = std::min(n, most / cols);
  const std::int64_t across = (n + rows - 1) / rows, down = (m + cols - 1) / cols;
  parallel_for(size / (n * m) * down * across, (1 << 14) / (rows * cols),
               [&](std::int64_t begin, std::int64_t end) {
                 Word near[most];
                 for (std::int64_t tile = begin; tile < end; ++tile) {
                   const auto [in_x, in_y] = outer.at(tile / across / down);
                   const std::int64_t r = tile % across * rows, c = tile / across % down * cols;
                   transpose_tile(x + in_x + r * x_step + c, x_step, std::min(rows, n - r),
                                  std::min(cols, m - c), near, y + in_y + c * y_step + r, y_step);
                 }
               });
}

// Two dimensions of y are moved together: the one that is the fastest in y and, unless that is the
// fastest in x, too, the one that is; else the one before it. The others are counted through.
template <class Word>
void permute_words(const Gather& g, std::int64_t size, const Word* x, Word* y) {
  struct Dim {
    std::int64_t extent = 1, in_x = 0, in_y = 0;
  };
  std::vector<Dim> dims;
  std::int64_t in_y = size;
  for (size_t d = 0; d < static_cast<size_t>(g.rank); ++d)
    dims.push_back({g.extents[d], g.steps[d], in_y /= g.extents[d]});
  if (dims.empty()) dims.push_back({1, 1, 1});
  const Dim last = dims.back();
  dims.pop_back();
  const bool rows = last.in_x == 1;
  size_t at = dims.size() - 1;
  while (!rows && dims[at].in_x != 1) --at;
  const Dim other = dims.empty() ? Dim() : dims[at];
  Count outer;
  for (size_t d = 0; d < dims.size(); ++d)
    if (d != at) outer.add(dims[d].extent, dims[d].in_x, dims[d].in_y);
  if (rows) return copy_rows(outer, other.extent, other.in_x, last.extent, size, x, y);
  transpose_tiles(outer, last.extent, last.in_x, other.extent, other.in_y, size, x, y);
}

}  // namespace

void cpu::permute(std::string_view, const Gather& g, const Tensor& x, Tensor& y) {
  visit_words(x.dtype(), [&](auto zero) {
    using Bits = decltype(zero);  // as numbers, which there are registers of
    using Word = std::conditional_t<sizeof(Bits) == 8, double,
                                    std::conditional_t<sizeof(Bits) == 4, float, Bits>>;
    permute_words(g, y.numel(), static_cast<const Word*>(x.raw()), static_cast<Word*>(y.raw()));
  });
}

}  // namespace ebb
