#include "ebb/ops/shape/embedding.h"

#include <limits>
#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/reduction/cross_entropy.h"
#include "ebb/ops/shape/runs.h"

namespace ebb {
namespace {

constexpr const char* op = "embedding";

void require_in_range(const Tensor& indices, std::int64_t rows) {
  constexpr std::int64_t ignore_none = std::numeric_limits<std::int64_t>::min();
  Tensor found = empty({2}, {Dtype::f64, indices.device()});
  run<cpu::find_bad_target, gpu::find_bad_target>(indices.device(), indices, rows, ignore_none,
                                                  found);
  const std::vector<double> v = found.to_vector<double>();
  const auto position = static_cast<std::int64_t>(v[0]);
  const auto value = static_cast<std::int64_t>(v[1]);
  require(position >= indices.numel(), Kind::index, op,
          text("index ", value, " not in [0,", rows, "), position ", position), value,
          "a row of weight");
}

void check(const Tensor& indices, const Tensor& weight, const EmbeddingOptions& options) {
  require_defined(op, "indices", indices);
  require(indices.dtype() == Dtype::i32, Kind::dtype, op, "indices must be whole numbers",
          indices.dtype(), "i32");
  require_floating(op, "weight", weight);
  require(weight.rank() == 2, Kind::shape, op, "weight must be 2-D, [V,D]", weight.shape(),
          "2 dimensions");
  require(indices.rank() < Shape::max_rank, Kind::shape, op, "indices have too many dimensions",
          indices.shape(), text("at most ", Shape::max_rank - 1));
  require(indices.device() == weight.device(), Kind::device, op,
          "indices and weight are on different devices",
          text(indices.device(), " and ", weight.device()), "one device");
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  require(!weight.requires_grad() || indices.numel() <= most, Kind::limit, op,
          "too many indices for a gradient", indices.numel(), text("at most ", most));
  require(weight.size(0) <= most, Kind::limit, op, "more rows than i32 can name", weight.shape(),
          text("at most ", most));
  if (options.check_indices) require_in_range(indices, weight.size(0));
}

Shape result_shape(const Shape& indices, std::int64_t width) {
  std::vector<std::int64_t> dims(indices.begin(), indices.end());
  dims.push_back(width);
  return Shape(dims, op);
}

}  // namespace

Tensor embedding(const Tensor& indices, const Tensor& weight, EmbeddingOptions options) {
  check(indices, weight, options);
  Tensor y = empty(result_shape(indices.shape(), weight.size(1)), weight.options());
  run_as_is<cpu::embedding, gpu::embedding>(y.device(), indices, weight, y);
  return record(op, y, {weight},
                [indices = Saved(indices), shape = weight.shape()](const Tensor& dy) -> Gradients {
                  Tensor dw = empty(shape, dy.options());
                  run<cpu::embedding_backward, gpu::embedding_backward>(dy.device(), indices.get(),
                                                                        dy, dw);
                  return {dw};
                });
}

// bf16 too: rows are copied, not computed with.
void cpu::embedding(const Tensor& indices, const Tensor& weight, Tensor& y) {
  visit<float, double, bf16>(weight.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t rows = weight.size(0), width = weight.size(1);
    const std::int32_t* at = indices.data<std::int32_t>();
    const T* table = weight.data<T>();
    T* to = y.data<T>();
    parallel_for(
        indices.numel(), 1 + 16384 / (width + 4), [=](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) {
            if (0 <= at[i] && at[i] < rows)
              copy_row(table + at[i] * width, width, to + i * width);
            else
              std::fill_n(to + i * width, width, T(std::numeric_limits<float>::quiet_NaN()));
          }
        });
  });
}

namespace {

// Where each row of the table was used, in order: places[first[v]] … places[first[v + 1] - 1].
struct Uses {
  std::vector<std::int64_t> first, places;

  Uses(const std::int32_t* indices, std::int64_t n, std::int64_t rows)
      : first(static_cast<size_t>(rows) + 1), places(static_cast<size_t>(n)) {
    const auto good = [&](std::int64_t i) { return 0 <= indices[i] && indices[i] < rows; };
    for (std::int64_t i = 0; i < n; ++i)
      if (good(i)) ++first[static_cast<size_t>(indices[i]) + 1];
    for (size_t v = 1; v < first.size(); ++v) first[v] += first[v - 1];
    std::vector<std::int64_t> next = first;
    for (std::int64_t i = 0; i < n; ++i)
      if (good(i)) places[static_cast<size_t>(next[static_cast<size_t>(indices[i])]++)] = i;
  }
};

// sum = Σ of `count` rows in their order, one or more, up to four a pass: memory is slow to begin a
// row.
template <class T>
void add_up(const T* x, std::int64_t width, const std::int64_t* rows, std::int64_t count,
            double* sum) {
  const auto pass = [&](auto some, std::int64_t k) {
    const T* row[some];
    for (int i = 0; i < some; ++i) row[i] = x + rows[k + i] * width;
    const bool first = k == 0;
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) {
      double s = first ? 0.0 : sum[d];
      for (int i = 0; i < some; ++i) s += static_cast<double>(row[i][d]);
      sum[d] = s;
    }
  };
  for (std::int64_t k = 0; k < count; k += 4) {
    switch (std::min<std::int64_t>(4, count - k)) {
      case 1:
        pass(std::integral_constant<int, 1>(), k);
        break;
      case 2:
        pass(std::integral_constant<int, 2>(), k);
        break;
      case 3:
        pass(std::integral_constant<int, 3>(), k);
        break;
      default:
        pass(std::integral_constant<int, 4>(), k);
    }
  }
}

}  // namespace

void cpu::embedding_backward(const Tensor& indices, const Tensor& dy, Tensor& dw) {
  visit<float, double>(dy.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t rows = dw.size(0), width = dw.size(1), n = indices.numel();
    const Uses uses(indices.data<std::int32_t>(), n, rows);
    const std::int64_t adds_a_row = width * (1 + n / std::max<std::int64_t>(rows, 1));
    const T* from = dy.data<T>();
    T* to = dw.data<T>();
    parallel_for(rows, 1 + 32768 / (adds_a_row + 1), [&](std::int64_t begin, std::int64_t end) {
      std::vector<double> sum(static_cast<size_t>(width));
      for (std::int64_t v = begin; v < end; ++v) {
        const std::int64_t* place = uses.places.data() + uses.first[static_cast<size_t>(v)];
        const std::int64_t count =
            uses.first[static_cast<size_t>(v) + 1] - uses.first[static_cast<size_t>(v)];
        T* row = to + v * width;
        if (count == 0) {
          std::fill_n(row, width, T(0));
        } else if (count == 1) {
          copy_row(from + *place * width, width, row);
        } else {
          add_up(from, width, place, count, sum.data());
          std::transform(sum.begin(), sum.end(), row, [](double s) { return static_cast<T>(s); });
        }
      }
    });
  });
}

}  // namespace ebb
