#include <limits>

#include "ebb/ops/long_rows.cuh"
#include "ebb/ops/normalization/norm_rows.cuh"

// The forward pass. Who takes which rows, the first that can:
//
//   f32 and bf16 on Hopper, rows of 1 MB     norm_spread.cu, all over the GPU
//   the same, of 64 KB, or few()             long_rows.cuh, in clusters of blocks
//   others of 64 KB, or few()                norm_slices.cu, read twice
//   shorter                                  rows.cuh, in a group's registers
namespace ebb {
namespace gpu {
namespace {

// y = w x̂ + b of a pack that begins at a column. Where rows are not packed, its elements lie
// anywhere in the weight's packs.
template <class T, bool packed>
struct AffinePack {
  using C = Compute<T>;
  static constexpr int width = packed ? pack_size<T> : 1;
  Hat<C> hat;
  const T* weight;  // or null
  const T* bias;    // or null
  Pack<T, width> w;
  Pack<T, width> b;

  __device__ AffinePack(const Hat<C>& of, const T* weights, const T* biases, std::int64_t column)
      : hat(of),
        weight(weights),
        bias(biases),
        w(load_if<width>(packed && weight, weight + column)),
        b(load_if<width>(packed && bias, bias + column)) {}
  __device__ C operator()(int j, std::int64_t column, C x) const {
    if constexpr (packed) return hat(x) * (weight ? widen(w, j) : C(1)) + widen(b, j);
    return hat(x) * (weight ? widen(weight[column]) : C(1)) + (bias ? widen(bias[column]) : C(0));
  }
};

struct Moments {
  double mean;
  double square;  // Σ (x − mean)²
};

template <class T, bool centred>
struct NormalizeRow {
  using C = Compute<T>;
  // Smaller variances than this, eps added, have lost squares that were too small for a C.
  static constexpr double lowest = sizeof(C) == 4 ? 0x1p-90 : 0x1p-900;
  static constexpr double highest = std::numeric_limits<C>::max();
  const T* x;
  const T* weight;
  const T* bias;
  std::int64_t cols;
  double one_of;  // 1 / cols
  double eps;
  double* mean;
  C* rstd;
  T* y;

  template <class Row>
  __device__ void operator()(Row& row) const {
    Moments of = std::is_same_v<typename Row::Wide, C> ? in_registers(row) : in_one_pass(row);
    const double variance = of.square * one_of + eps;
    C r = 1 / sqrt(static_cast<C>(variance));
    const bool lost = !(lowest < variance && variance < highest);
    if (__any_sync(0xffffffffu, lost)) {  // the groups of a warp together
      const Moments exact = in_doubles(row);
      if (lost) {
        of = exact;
        r = static_cast<C>(1 / sqrt(exact.square * one_of + eps));
      }
    }
    if (row.leader()) {
      if constexpr (centred) mean[row.index()] = of.mean;
      rstd[row.index()] = r;
    }
    const Hat<C> hat(of.mean, r);
    row.write_packs(y, [&](std::int64_t column) {
      return AffinePack<T, Row::packed>(hat, weight, bias, column);
    });
  }

 private:
  // Seen from the row's first element, so that numbers far from 0 keep their digits.
  template <class Row>
  __device__ Moments in_registers(Row& row) const {
    const C first = centred ? widen(x[row.index() * cols]) : C(0);
    C off = 0;
    if constexpr (centred) {
      row.each([&](auto, C x) { off += x - first; });
      off = row.reduce(Sum{}, off) * static_cast<C>(one_of);
    }
    C square = 0;
    row.each([&](auto, C x) {
      const C d = (x - first) - off;
      square += d * d;
    });
    square = row.reduce(Sum{}, square);
    return {static_cast<double>(first) + static_cast<double>(off), static_cast<double>(square)};
  }
  // The same where a pass takes long: windows as seen from their first element, and these from the
  // row's.
  template <class Row>
  __device__ Moments in_one_pass(Row& row) const {
    constexpr C small = centred ? C(1) / 64 : C(1);  // differences of finite numbers may overflow
    const double first = centred ? static_cast<double>(widen(x[row.index() * cols])) : 0.0;
    double sum = 0;
    double square = 0;
    row.windows([&](auto visit) {
      C origin = 0;
      C off = 0;
      C squares = 0;
      int count = 0;
      visit([&](auto, C x) {
        if (centred && count == 0) origin = x * small;
        const C d = x * small - origin;
        if (centred) off += d;
        squares += d * d;
        ++count;
      });
      square += static_cast<double>(squares) / (small * small);
      if (!centred) return;
      const double from = static_cast<double>(origin) / small - first;
      const double by = static_cast<double>(off) / small;
      sum += by + count * from;
      square += (2 * by + count * from) * from;
    });
    square = row.reduce(Sum{}, square);
    if (!centred) return {0, square};
    sum = row.reduce(Sum{}, sum);
    const double off = sum * one_of;
    square -= off * sum;
    return {first + off, square < 0 ? 0 : square};
  }
  // The same of numbers whose squares are too large for a C, or too small.
  template <class Row>
  __device__ Moments in_doubles(Row& row) const {
    double m = 0;
    if constexpr (centred) {
      row.each([&](auto, C x) { m += static_cast<double>(x); });
      m = row.reduce(Sum{}, m) * one_of;
    }
    double square = 0;
    row.each([&](auto, C x) {
      const double d = static_cast<double>(x) - m;
      square += d * d;
    });
    return {m, row.reduce(Sum{}, square)};
  }
};

template <class T, bool centred>
void forward(const Normalize& n) {
  const std::int64_t bytes = n.s.cols * std::int64_t{sizeof(T)};
  if (bytes >= 1 << 20 && normalize_spread(n)) return;
  const T* const x = n.x.data<T>();
  T* const y = n.y.data<T>();
  const T* const w = data_or_null<T>(n.weight);
  const T* const b = data_or_null<T>(n.bias);
  const NormalizeRow<T, centred> body{x,
                                      w,
                                      b,
                                      n.s.cols,
                                      1 / static_cast<double>(n.s.cols),
                                      n.eps,
                                      data_or_null<double>(n.mean),
                                      n.rstd.data<Compute<T>>(),
                                      y};
  if (few(n.s) || bytes > long_row_bytes) {
    if constexpr (sizeof(T) <= 4)
      if (long_rows<T>(n.op, body, n.s.rows, n.s.cols, x)) return;
    return normalize_slices(n);
  }
  const RowLayout layout{n.s.rows, n.s.cols};
  if (n.s.cols % pack_size<T> == 0)
    keep_rows_as<T, true>(n.op, body, layout, x);
  else
    keep_rows_as<T, false>(n.op, body, layout, x);
}

}  // namespace
}  // namespace gpu

void gpu::normalize_rows(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                         const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  if (x.numel() == 0) return;
  const Normalize n{op, x, s, weight, bias, eps, mean, rstd, y};
  with_norm<float, double, bf16>(n, [&]<class T, bool centred>() { forward<T, centred>(n); });
}

}  // namespace ebb
