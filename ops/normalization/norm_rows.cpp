#include "ebb/ops/normalization/norm_rows.h"

#include "ebb/core/eigen.h"
#include "ebb/ops/sums.h"

namespace ebb {

NormRows norm_rows(const char* op, const Tensor& x, Shape& normalized, double eps) {
  require_floating(op, "x", x);
  require(x.rank() > 0, Kind::shape, op, "x has no dimension to normalise", x.shape(),
          "1 dimension or more");
  if (normalized.rank() == 0) normalized = {x.size(-1)};
  const int first = x.rank() - normalized.rank();
  require(first >= 0 && std::equal(normalized.begin(), normalized.end(), x.shape().begin() + first),
          Kind::shape, op,
          text("normalized_shape is not how the shape of x, ", x.shape(), ", ends"), normalized,
          "x's trailing dimensions");
  require(eps >= 0 && std::isfinite(eps), Kind::value, op, "eps out of range", eps, "0 or more");
  return {x.shape().product(0, first), normalized.numel()};
}

void check_affine(const char* op, const char* name, const Tensor& v, const Tensor& x,
                  const Shape& normalized) {
  if (!v.defined()) return;
  require_shape(op, name, v, normalized);
  require_alike(op, "x", x, name, v);
}

Tensor normalize_rows(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const NormRows& rows, double eps, bool centred) {
  const Device device = x.device();
  Tensor mean = centred ? empty({rows.rows}, {Dtype::f64, device}) : Tensor();
  Tensor rstd = empty({rows.rows}, {x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, device});
  Tensor y = empty_like(x);
  run<cpu::normalize_rows, gpu::normalize_rows>(device, op, x, rows, weight, bias, eps, mean, rstd,
                                                y);
  const auto backward = [op, x = Saved(x), weight = Saved(weight), mean, rstd, rows,
                         normalized = bias.defined() ? bias.shape() : Shape{},
                         needs_x = x.requires_grad(), needs_weight = weight.requires_grad(),
                         needs_bias = bias.requires_grad()](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    Tensor dweight = needs_weight ? empty_like(weight) : Tensor();
    Tensor dbias = needs_bias ? empty(normalized, dy.options()) : Tensor();
    run<cpu::normalize_rows_backward, gpu::normalize_rows_backward>(
        dy.device(), op, x.get(), dy, rows, weight.get(), mean, rstd, dx, dweight, dbias);
    return {needs_x ? dx : Tensor(), dweight, dbias};
  };
  return record(op, y, {x, weight, bias}, backward);
}

namespace {

using cpu::array;
using cpu::Array;
using cpu::sum_of;

std::int64_t grain(std::int64_t cols) { return 16384 / (cols + 8); }

// μ as the nearest T and what that leaves of it, so that x − μ is right far from 0.
template <class T>
struct Centre {
  T high = 0;
  T low = 0;
  Centre() = default;
  explicit Centre(double mean) : high(T(mean)), low(T(mean - static_cast<double>(high))) {}
};

template <class T>
void forward(const Tensor& x, const NormRows& s, const Tensor& weight, const Tensor& bias,
             double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  const T* w = weight.defined() ? weight.data<T>() : nullptr;
  const T* b = bias.defined() ? bias.data<T>() : nullptr;
  const double n = static_cast<double>(s.cols);
  double* means = mean.defined() ? mean.data<double>() : nullptr;
  T* inverse = rstd.data<T>();
  T* to = y.data<T>();
  const T* from = x.data<T>();
  parallel_for(s.rows, grain(s.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* row = from + i * s.cols;
      const double m = means ? sum_of(0, s.cols, [=](std::int64_t c) { return row[c]; }) / n : 0.0;
      const double square = sum_of(0, s.cols, [=](std::int64_t c) {
        const double d = static_cast<double>(row[c]) - m;
        return d * d;
      });
      const T r = T(1 / std::sqrt(square / n + eps));
      if (means) means[i] = m;
      inverse[i] = r;
      const Centre<T> centre(m);
      const auto hat = ((array(row, s.cols) - centre.high) - centre.low) * r;
      auto out = array(to + i * s.cols, s.cols);
      if (w && b) {
        out = hat * array(w, s.cols) + array(b, s.cols);
      } else if (w) {
        out = hat * array(w, s.cols);
      } else if (b) {
        out = hat + array(b, s.cols);
      } else {
        out = hat;
      }
    }
  });
}

// One row's gradient, and its terms of the columns' sums, while the row is in the cache.
template <class T>
struct RowBackward {
  const NormRows& s;
  const T* x;
  const T* dy;
  const T* weight;     // or null
  const double* mean;  // or null
  const T* rstd;
  T* dx;
  Array<T> hat = Array<T>(s.cols);
  Array<T> g = Array<T>(s.cols);

  void operator()(std::int64_t i, Array<T>& dweight, Array<T>& dbias) {
    const double n = static_cast<double>(s.cols);
    const Centre<T> centre = mean ? Centre<T>(mean[i]) : Centre<T>();
    const auto upstream = array(dy + i * s.cols, s.cols);
    hat = ((array(x + i * s.cols, s.cols) - centre.high) - centre.low) * rstd[i];
    g = upstream;
    if (weight) g *= array(weight, s.cols);
    const T* h = hat.data();
    const T* v = g.data();
    const T a = mean ? T(sum_of(0, s.cols, [=](std::int64_t c) { return v[c]; }) / n) : T(0);
    const T b = T(sum_of(0, s.cols, [=](std::int64_t c) { return v[c] * h[c]; }) / n);
    array(dx + i * s.cols, s.cols) = ((g - a) - hat * b) * rstd[i];
    if (dweight.size() > 0) dweight += upstream * hat;
    if (dbias.size() > 0) dbias += upstream;
  }
};

// At most 64 parts whatever the number of threads; each adds up windows of 64 rows in T, and those
// in double.
template <class T>
void backward(const Tensor& x, const Tensor& dy, const NormRows& s, const Tensor& weight,
              const Tensor& mean, const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  constexpr std::int64_t window = 64;
  const std::int64_t part = std::max<std::int64_t>(window, (s.rows + 63) / 64);
  const std::int64_t parts = (s.rows + part - 1) / part;
  Tensor* const sums[] = {&dweight, &dbias};
  std::vector<Array<double>> partial[2];
  for (int q = 0; q < 2; ++q)
    partial[q].assign(static_cast<size_t>(parts),
                      Array<double>::Zero(sums[q]->defined() ? s.cols : 0));
  RowBackward<T> row{s,
                     x.data<T>(),
                     dy.data<T>(),
                     weight.defined() ? weight.data<T>() : nullptr,
                     mean.defined() ? mean.data<double>() : nullptr,
                     rstd.data<T>(),
                     dx.data<T>()};
  parallel_for(parts, 16384 / (part * (s.cols + 8)), [&](std::int64_t begin, std::int64_t end) {
    RowBackward<T> mine = row;
    for (size_t p = static_cast<size_t>(begin); p < static_cast<size_t>(end); ++p) {
      const std::int64_t first = static_cast<std::int64_t>(p) * part;
      const std::int64_t last = std::min(s.rows, first + part);
      for (std::int64_t i = first; i < last; i += window) {
        Array<T> near[2] = {Array<T>::Zero(partial[0][p].size()),
                            Array<T>::Zero(partial[1][p].size())};
        for (std::int64_t k = i; k < std::min(last, i + window); ++k) mine(k, near[0], near[1]);
        for (int q = 0; q < 2; ++q) partial[q][p] += near[q].template cast<double>();
      }
    }
  });
  for (int q = 0; q < 2; ++q) {
    if (!sums[q]->defined()) continue;
    Array<double> total = Array<double>::Zero(s.cols);
    for (const Array<double>& one : partial[q]) total += one;
    array(sums[q]->data<T>(), s.cols) = total.template cast<T>();
  }
}

}  // namespace

void cpu::normalize_rows(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                         const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    forward<decltype(zero)>(x, s, weight, bias, eps, mean, rstd, y);
  });
}

void cpu::normalize_rows_backward(const char* op, const Tensor& x, const Tensor& dy,
                                  const NormRows& s, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  visit<float, double>(x.dtype(), op, [&](auto zero) {
    backward<decltype(zero)>(x, dy, s, weight, mean, rstd, dx, dweight, dbias);
  });
}

}  // namespace ebb
