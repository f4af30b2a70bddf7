#include "ebb/ops/long_rows.cuh"
#include "ebb/ops/normalization/norm_rows.cuh"

// Rows by the row engine (rows.cuh), which holds them as they are loaded, and long ones by clusters
// of blocks (long_rows.cuh).
namespace ebb {
namespace gpu {
namespace {

constexpr std::int64_t short_row_bytes = 8192;  // that norm_rows.cu is faster with

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

template <class T, bool centred>
struct NormalizeRow {
  using C = Compute<T>;
  const T* x;
  const T* weight;
  const T* bias;
  std::int64_t cols;
  double eps;
  double* mean;
  C* rstd;
  T* y;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double n = static_cast<double>(cols);
    double m = 0;
    double square = 0;
    if constexpr (centred && std::is_same_v<typename Row::Wide, double>)
      in_one_pass(row, m, square);
    else
      in_two_passes(row, m, square);
    const C r = static_cast<C>(1 / sqrt(square / n + eps));
    if (row.leader()) {
      if constexpr (centred) mean[row.index()] = m;
      rstd[row.index()] = r;
    }
    const Hat<C> hat(m, r);
    row.write_packs(y, [&](std::int64_t column) {
      return AffinePack<T, Row::packed>(hat, weight, bias, column);
    });
  }

 private:
  // The mean m and Σ (x − m)².
  template <class Row>
  __device__ void in_two_passes(Row& row, double& m, double& square) const {
    if constexpr (centred) {
      row.each([&](auto, C x) { m += static_cast<double>(x); });
      m = row.reduce(Sum{}, m) / static_cast<double>(cols);
    }
    row.each([&](auto, C x) {  // of the largest numbers, too
      const double d = static_cast<double>(x) - m;
      square += d * d;
    });
    square = row.reduce(Sum{}, square);
  }
  // The same where a pass takes long: windows as seen from their first element, and these from the
  // row's, so that numbers far from 0 keep their digits.
  template <class Row>
  __device__ void in_one_pass(Row& row, double& m, double& square) const {
    constexpr C small = C(1) / 64;  // differences of finite numbers may overflow
    const double first = static_cast<double>(widen(x[row.index() * cols]));
    double sum = 0;
    row.windows([&](auto visit) {
      C origin = 0;
      C off = 0;
      C squares = 0;
      int count = 0;
      visit([&](auto, C x) {
        if (count == 0) origin = x * small;
        const C d = x * small - origin;
        off += d;
        squares += d * d;
        ++count;
      });
      const double from = static_cast<double>(origin) / small - first;
      const double by = static_cast<double>(off) / small;
      sum += by + count * from;
      square += static_cast<double>(squares) / (small * small) + (2 * by + count * from) * from;
    });
    sum = row.reduce(Sum{}, sum);
    const double off = sum / static_cast<double>(cols);
    square = row.reduce(Sum{}, square) - off * sum;
    square = square < 0 ? 0 : square;
    m = first + off;
  }
};

template <class T, bool centred>
bool forward(const Normalize& n) {
  const T* const x = n.x.data<T>();
  T* const y = n.y.data<T>();
  const T* const w = data_or_null<T>(n.weight);
  const T* const b = data_or_null<T>(n.bias);
  const NormalizeRow<T, centred> body{
      x, w, b, n.s.cols, n.eps, data_or_null<double>(n.mean), n.rstd.data<Compute<T>>(), y};
  const std::int64_t bytes = n.s.cols * std::int64_t{sizeof(T)};
  const bool packed = n.s.cols % pack_size<T> == 0 && all_aligned(x, y, w, b);
  if ((few(n.s) || bytes > long_row_bytes) && all_aligned(w, b) &&
      long_rows<T>(n.op, body, n.s.rows, n.s.cols, y, x))
    return true;
  if (few(n.s) || bytes > long_row_bytes || (packed && bytes <= short_row_bytes)) return false;
  const RowLayout layout{n.s.rows, n.s.cols};
  if (packed)
    keep_rows_as<T, true>(n.op, body, layout, x);
  else
    keep_rows_as<T, false>(n.op, body, layout, x);
  return true;
}

}  // namespace

bool normalize_by_row(const Normalize& n) {
  return try_norm(n, [&]<class T, bool centred>() { return forward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
