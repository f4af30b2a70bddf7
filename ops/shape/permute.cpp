#include "ebb/ops/shape/permute.h"

#include <numeric>

#include "ebb/core/parallel.h"
#include "ebb/ops/shape/runs.h"

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
  run_bytes<cpu::permute, gpu::permute>(x.device(), op, gather_for(x.shape(), axes), x, y);
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

// Rows of y (its last dimension) over threads; their starts in x are counted like an odometer.
template <class Word>
void permute_words(const Gather& g, std::int64_t size, const Word* x, Word* y) {
  const auto last = static_cast<size_t>(std::max(g.rank - 1, 0));
  const std::int64_t length = g.rank ? g.extents[last] : 1;
  const std::int64_t step = g.rank ? g.steps[last] : 1;
  parallel_for(size / length, 1 + (1 << 15) / length, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const Word* from = x;
      std::int64_t rest = row;
      for (int d = g.rank - 2; d >= 0; --d) {
        const std::int64_t extent = g.extents[static_cast<size_t>(d)];
        from += rest % extent * g.steps[static_cast<size_t>(d)];
        rest /= extent;
      }
      Word* to = y + row * length;
      if (step == 1)
        std::copy_n(from, length, to);
      else
        for (std::int64_t i = 0; i < length; ++i) to[i] = from[i * step];
    }
  });
}

}  // namespace

void cpu::permute(std::string_view, const Gather& g, const Tensor& x, Tensor& y) {
  const auto move = [&](auto zero) {
    using Word = decltype(zero);
    permute_words(g, y.numel(), static_cast<const Word*>(x.raw()), static_cast<Word*>(y.raw()));
  };
  switch (size_of(x.dtype())) {
    case 1:
      return move(std::uint8_t{});
    case 2:
      return move(std::uint16_t{});
    case 4:
      return move(std::uint32_t{});
    default:
      return move(std::uint64_t{});
  }
}

}  // namespace ebb
