#include "ebb/ops/normalization/norm_rows.h"

#include "ebb/ops/normalization/centre.h"
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
  run_as_is<cpu::normalize_rows, gpu::normalize_rows>(device, op, x, rows, weight, bias, eps, mean,
                                                      rstd, y);
  const auto backward = [op, x = Saved(x), weight = Saved(weight), mean, rstd, rows,
                         normalized = bias.defined() ? bias.shape() : Shape{},
                         needs_x = x.requires_grad(), needs_weight = weight.requires_grad(),
                         needs_bias = bias.requires_grad()](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(dy);
    Tensor dweight = needs_weight ? empty_like(weight) : Tensor();
    Tensor dbias = needs_bias ? empty(normalized, dy.options()) : Tensor();
    run_as_is<cpu::normalize_rows_backward, gpu::normalize_rows_backward>(
        dy.device(), op, x.get(), dy, rows, weight.get(), mean, rstd, dx, dweight, dbias);
    return {needs_x ? dx : Tensor(), dweight, dbias};
  };
  return record(op, y, {x, weight, bias}, backward);
}

namespace {

using cpu::array;
using cpu::Centre;
using cpu::Centres;
using cpu::map_row;
using cpu::row_sum;
using cpu::Simd;
using cpu::sum_row;
using cpu::wide;
using cpu::Wide;

std::int64_t grain(std::int64_t cols) { return 16384 / (cols + 8); }

template <class T>
struct Forward {
  std::int64_t cols;
  const T *weight, *bias;  // or null
  double eps;
  double* mean;  // or null
  Wide<T>* rstd;

  void row(std::int64_t i, const T* x, T* y) const {
    const auto n = static_cast<double>(cols);
    const double m = mean ? row_sum(x, cols) / n : 0.0;
    const auto square = [m = Simd<double>(m)](Simd<double> x) { return (x - m) * (x - m); };
    const auto r = static_cast<Wide<T>>(1 / std::sqrt(sum_row<T>(cols, square, x) / n + eps));
    if (mean) mean[i] = m;
    rstd[i] = r;
    const Centre<Wide<T>> centre(m);
    const auto hat = [high = Simd<Wide<T>>(centre.high), low = Simd<Wide<T>>(centre.low),
                      r = Simd<Wide<T>>(r)](auto x) { return ((x - high) - low) * r; };
    if (weight && bias) {
      map_row(
          y, cols, [hat](auto x, auto w, auto b) { return hat(x) * w + b; }, x, weight, bias);
    } else if (weight) {
      map_row(
          y, cols, [hat](auto x, auto w) { return hat(x) * w; }, x, weight);
    } else if (bias) {
      map_row(
          y, cols, [hat](auto x, auto b) { return hat(x) + b; }, x, bias);
    } else {
      map_row(y, cols, hat, x);
    }
  }

  // `count` short rows as columns.
  void columns(std::int64_t first, std::int64_t count, std::int64_t step, const Wide<T>* x,
               Wide<T>* y) const {
    using W = Wide<T>;
    constexpr std::int64_t most = cpu::near_elements<T>;
    double m[most] = {}, square[most] = {};
    if (mean) {
      cpu::add_rows(0, cols, step, m, [=](auto k, auto c) { return x[k * step + c]; });
      array(m, step) /= static_cast<double>(cols);
      std::copy_n(m, count, mean + first);
    }
    cpu::add_rows(0, cols, step, square, [=, m = &m[0]](auto k, auto c) {
      const double d = static_cast<double>(x[k * step + c]) - m[c];
      return d * d;
    });
    const auto inverse_root = [n = Simd<double>(static_cast<double>(cols)),
                               eps = Simd<double>(eps)](auto s) { return 1.0 / sqrt(s / n + eps); };
    map_row(square, step, inverse_root, square);
    W r[most];
    std::copy_n(square, step, r);
    std::copy_n(r, count, rstd + first);
    const Centres<W> centre(m, step);
    for (std::int64_t k = 0; k < cols; ++k) {
      const auto affine =
          [w = Simd<W>(weight ? wide(weight[k]) : W(1)), b = Simd<W>(bias ? wide(bias[k]) : W(0))](
              auto x, auto high, auto low, auto r) { return ((x - high) - low) * r * w + b; };
      map_row(y + k * step, step, affine, x + k * step, &centre.high[0], &centre.low[0], &r[0]);
    }
  }
};

template <class T>
void forward(const Tensor& x, const NormRows& s, const Tensor& weight, const Tensor& bias,
             double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  const Forward<T> of{s.cols,
                      weight.defined() ? weight.data<T>() : nullptr,
                      bias.defined() ? bias.data<T>() : nullptr,
                      eps,
                      mean.defined() ? mean.data<double>() : nullptr,
                      rstd.data<Wide<T>>()};
  const T* from = x.data<T>();
  T* to = y.data<T>();
  const View view{s.rows, s.cols, 1};
  if (cpu::are_short_rows<T>(view)) {
    const auto f = [&](auto first, auto count, const View& c, const auto* x, auto* y) {
      of.columns(first, count, c.inner, x, y);
    };
    return cpu::for_short_rows(view, f, to, s.cols, from);
  }
  parallel_for(s.rows, grain(s.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) of.row(i, from + i * s.cols, to + i * s.cols);
  });
}

}  // namespace

void cpu::normalize_rows(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                         const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    forward<decltype(zero)>(x, s, weight, bias, eps, mean, rstd, y);
  });
}

}  // namespace ebb
