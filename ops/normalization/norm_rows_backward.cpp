// The backward of norm_rows' CPU twin.
#include "ebb/ops/normalization/centre.h"
#include "ebb/ops/normalization/norm_rows.h"
#include "ebb/ops/sums.h"

namespace ebb {
namespace {

using cpu::array;
using cpu::Centre;
using cpu::Centres;
using cpu::map_row;
using cpu::quick_sum_row;
using cpu::row_sum;
using cpu::Simd;
using cpu::sum_row;
using cpu::wide;
using cpu::Wide;

constexpr std::int64_t tile = 1024;  // columns whose sums stay in the first-level cache

// Σ g and Σ g x̂ over a row, or their means.
struct RowSums {
  double g = 0;
  double g_hat = 0;
};

template <class T>
struct Gradient {
  using W = Wide<T>;
  using V = Simd<W>;
  NormRows s;
  const T* x;
  const T* dy;
  const T* weight;
  const double* mean;  // or null
  const W* rstd;
  T* dx;

  Centre<W> centre(std::int64_t i) const { return mean ? Centre<W>(mean[i]) : Centre<W>(); }

  // Over columns [begin, end) of row i. By fours in T: their sums are exact where all g are equal.
  RowSums sums(std::int64_t i, std::int64_t begin, std::int64_t end) const {
    const T *v = x + i * s.cols + begin, *up = dy + i * s.cols + begin, *w = weight + begin;
    const Centre<W> at = centre(i);
    const auto g = [](auto up, auto w) { return up * w; };
    const auto g_hat = [g, high = Simd<W>(at.high), low = Simd<W>(at.low), r = Simd<W>(rstd[i])](
                           auto up, auto w, auto x) { return g(up, w) * (((x - high) - low) * r); };
    return {mean ? quick_sum_row<T>(end - begin, g, up, w) : 0,
            quick_sum_row<T>(end - begin, g_hat, up, w, v)};
  }

  RowSums means(const RowSums& sums) const {
    const double n = static_cast<double>(s.cols);
    return {mean ? sums.g / n : 0, sums.g_hat / n};
  }

  // dx of `count` short rows as columns, and their terms of dw and db. First it holds x̂.
  void columns(std::int64_t first, std::int64_t count, std::int64_t step, const W* v, const W* up,
               W* to, double* dw, double* db) const {
    constexpr std::int64_t most = cpu::near_elements<T>;
    double sum[most] = {}, sum_hat[most] = {};
    if (mean) std::copy_n(mean + first, count, sum);
    const Centres<W> middle(sum, step);
    W r[most] = {}, a[most], b[most];
    W g[most];  // rounded: g − a is 0 where a is the mean of equal g
    std::copy_n(rstd + first, count, r);
    for (std::int64_t k = 0; k < s.cols; ++k) {
      const std::int64_t at = k * step;
      map_row(
          to + at, step, [](auto x, auto high, auto low, auto r) { return ((x - high) - low) * r; },
          v + at, &middle.high[0], &middle.low[0], &r[0]);
      map_row(
          g + at, step, [w = Simd<W>(wide(weight[k]))](auto up) { return up * w; }, up + at);
      dw[k] += sum_row<W>(
          count, [](auto up, auto hat) { return up * hat; }, up + at, to + at);
      db[k] += row_sum(up + at, count);
    }
    array(sum, step).setZero();
    const W *hats = to, *gs = g;
    if (mean) cpu::add_rows(0, s.cols, step, sum, [=](auto k, auto c) { return gs[k * step + c]; });
    cpu::add_rows(0, s.cols, step, sum_hat,
                  [=](auto k, auto c) { return gs[k * step + c] * hats[k * step + c]; });
    const auto n = static_cast<double>(s.cols);
    for (std::int64_t c = 0; c < step; ++c) a[c] = W(sum[c] / n);
    for (std::int64_t c = 0; c < step; ++c) b[c] = W(sum_hat[c] / n);
    for (std::int64_t at = 0; at < s.cols * step; at += step)
      map_row(
          to + at, step,
          [](auto hat, auto g, auto a, auto b, auto r) { return ((g - a) - hat * b) * r; },
          hats + at, gs + at, &a[0], &b[0], &r[0]);
  }

  // dx of rows [first, last) and columns [begin, end), and their terms of dw and db.
  void finish(std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end,
              const RowSums* means, double* dw, double* db) const {
    W near[2][tile] = {};
    for (std::int64_t i = first; i < last; ++i)
      finish_row(i, begin, end, means[i - first], near[0], near[1]);
    for (std::int64_t c = begin; c < end; ++c) {
      dw[c] += static_cast<double>(near[0][c - begin]);
      db[c] += static_cast<double>(near[1][c - begin]);
    }
  }

  void finish_row(std::int64_t i, std::int64_t begin, std::int64_t end, const RowSums& means, W* dw,
                  W* db) const {
    const std::int64_t at = i * s.cols + begin;
    const T *v = x + at, *up = dy + at, *w = weight + begin;
    const Centre<W> middle = centre(i);
    const V r = rstd[i], a = W(means.g), b = W(means.g_hat);
    W g[tile];  // rounded: g − a is 0 where a is the mean of equal g
    map_row(
        g, end - begin, [](auto up, auto w) { return up * w; }, up, w);
    const auto some_columns = [=, high = V(middle.high), low = V(middle.low), to = dx + at, &g](
                                  std::int64_t c, auto... count) {
      const V gradient = V::load(up + c, count...);
      const V hat = ((V::load(v + c, count...) - high) - low) * r;
      (((V::load(g + c, count...) - a) - hat * b) * r).store(to + c, count...);
      (V::load(dw + c) + gradient * hat).store(dw + c);
      (V::load(db + c) + gradient).store(db + c);
    };
    std::int64_t c = 0;
    for (; c + cpu::lanes<W> <= end - begin; c += cpu::lanes<W>) some_columns(c);
    if (c < end - begin) some_columns(c, end - begin - c);
  }
};

// dw and db as sums of parts of the rows, which are added up in order.
struct Partial {
  std::int64_t parts, cols;
  std::vector<double> sums = std::vector<double>(static_cast<size_t>(2 * parts * cols));
  double* at(std::int64_t q, std::int64_t part) { return sums.data() + (q * parts + part) * cols; }

  template <class T>
  void total(std::int64_t q, Tensor& to) {
    if (!to.defined()) return;
    for (std::int64_t p = 1; p < parts; ++p) array(at(q, 0), cols) += array(at(q, p), cols);
    std::transform(at(q, 0), at(q, 0) + cols, to.data<T>(),
                   [](double sum) { return T(Wide<T>(sum)); });
  }
};

// Many rows: at most 64 parts of them, whatever the number of threads, in windows of rows that
// stay in the second-level cache between the two passes over them.
template <class T>
Partial backward_of_many(const Gradient<T>& gradient) {
  const std::int64_t rows = gradient.s.rows, cols = gradient.s.cols;
  const std::int64_t window = std::clamp<std::int64_t>((1 << 16) / (cols + 1), 1, 64);
  const std::int64_t part = std::max<std::int64_t>(64, (rows + 63) / 64);
  Partial partial{(rows + part - 1) / part, cols};
  parallel_for(partial.parts, 16384 / (part * (cols + 8)), [&](auto begin, auto end) {
    RowSums means[64];
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t stop = std::min(rows, (p + 1) * part), at = p * part * cols;
      const View view{stop - p * part, cols, 1};
      if (cpu::are_short_rows<T>(view, 2)) {
        const auto f = [&](auto first, auto count, const View& c, const auto* x, const auto* dy,
                           auto* dx) {
          gradient.columns(p * part + first, count, c.inner, x, dy, dx, partial.at(0, p),
                           partial.at(1, p));
        };
        cpu::each_short_row(view, 0, view.outer, f, gradient.dx + at, cols, gradient.x + at,
                            gradient.dy + at);
        continue;
      }
      for (std::int64_t first = p * part; first < stop; first += window) {
        const std::int64_t last = std::min(stop, first + window);
        for (std::int64_t i = first; i < last; ++i)
          means[i - first] = gradient.means(gradient.sums(i, 0, cols));
        for (std::int64_t c = 0; c < cols; c += tile)
          gradient.finish(first, last, c, std::min(cols, c + tile), means, partial.at(0, p),
                          partial.at(1, p));
      }
    }
  });
  return partial;
}

// Few rows, or long ones: threads share out their columns.
template <class T>
Partial backward_of_few(const Gradient<T>& gradient) {
  constexpr std::int64_t block = 16384;
  const std::int64_t rows = gradient.s.rows, cols = gradient.s.cols;
  const std::int64_t blocks = (cols + block - 1) / block, tiles = (cols + tile - 1) / tile;
  std::vector<RowSums> sums(static_cast<size_t>(rows * blocks)), means(static_cast<size_t>(rows));
  parallel_for(rows * blocks, 16384 / std::min(block, cols + 8), [&](auto begin, auto end) {
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t c = k % blocks * block;
      sums[static_cast<size_t>(k)] = gradient.sums(k / blocks, c, std::min(cols, c + block));
    }
  });
  for (std::int64_t i = 0; i < rows; ++i) {
    RowSums all;
    for (std::int64_t k = i * blocks; k < (i + 1) * blocks; ++k) {
      all.g += sums[static_cast<size_t>(k)].g;
      all.g_hat += sums[static_cast<size_t>(k)].g_hat;
    }
    means[static_cast<size_t>(i)] = gradient.means(all);
  }
  Partial partial{1, cols};
  parallel_for(tiles, 16384 / (rows * tile + 1), [&](auto begin, auto end) {
    for (std::int64_t c = begin * tile; c < std::min(end * tile, cols); c += tile)
      for (std::int64_t i = 0; i < rows; i += 64)
        gradient.finish(i, std::min(rows, i + 64), c, std::min(cols, c + tile), means.data() + i,
                        partial.at(0, 0), partial.at(1, 0));
  });
  return partial;
}

template <class T>
void backward(const Tensor& x, const Tensor& dy, const NormRows& s, const Tensor& weight,
              const Tensor& mean, const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  const std::vector<T> ones(static_cast<size_t>(weight.defined() ? 0 : s.cols), T(1));
  const Gradient<T> gradient{s,
                             x.data<T>(),
                             dy.data<T>(),
                             weight.defined() ? weight.data<T>() : ones.data(),
                             mean.defined() ? mean.data<double>() : nullptr,
                             rstd.data<Wide<T>>(),
                             dx.data<T>()};
  const bool few = s.rows < 128 || s.cols > 16384;
  Partial partial = few ? backward_of_few(gradient) : backward_of_many(gradient);
  partial.total<T>(0, dweight);
  partial.total<T>(1, dbias);
}

}  // namespace

void cpu::normalize_rows_backward(const char* op, const Tensor& x, const Tensor& dy,
                                  const NormRows& s, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    backward<decltype(zero)>(x, dy, s, weight, mean, rstd, dx, dweight, dbias);
  });
}

}  // namespace ebb
