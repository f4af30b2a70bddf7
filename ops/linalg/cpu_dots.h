// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's matrix product where one side is short and the sums are long: dots of rows, SIMD along
// the sum, up to four by four of them at a time. What does not lie in rows is gathered into some.
#pragma once
#include <array>
#include <utility>
#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/linalg/gemm.h"
#include "ebb/ops/simd.h"

namespace ebb::cpu {

template <class T>
class Dots {
 public:
  Dots(const GemmSize& s, const T* a, const T* b, const T* bias, T* y)
      : s_(s), a_(a), b_(b), bias_(bias), y_(y) {}

  static bool fit(const GemmSize& s) {
    const bool rows = !s.transpose_a && s.transpose_b;
    const std::int64_t side = rows || s.n == 1 ? std::min(s.m, s.n) : std::max(s.m, s.n);
    return side <= 8 && s.k >= std::max<std::int64_t>(48, 16 * side) &&
           !(s.n == 1 && s.m > 8 && s.transpose_a);
  }

  // The sums of each part of k are rounded once, to double, so that they stay exact enough; parts
  // are added in their order.
  void operator()() const {
    const std::int64_t across = (s_.n + square - 1) / square;
    const std::int64_t squares = (s_.m + square - 1) / square * across;
    const std::int64_t parts = (s_.k + part - 1) / part, size = s_.m * s_.n;
    std::vector<double> sums(static_cast<size_t>(parts > 1 ? s_.batch * size * parts : 0));
    const std::int64_t of_task =
        std::min(s_.m, square) * std::min(s_.n, square) * std::min(s_.k, part);
    const auto run = [&](std::int64_t begin, std::int64_t end) {
      T near[8 * stretch];
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t d = t % parts, at = t / parts % squares, n = t / parts / squares;
        sum_square(n, at / across * square, at % across * square, d, near,
                   [&](auto row, auto column, double sum) {
                     const std::int64_t e = n * size + row + column;
                     if (parts == 1) return put(e, column, sum);
                     sums[static_cast<size_t>(e * parts + d)] = sum;
                   });
      }
    };
    parallel_for(s_.batch * squares * parts, (1 << 17) / of_task + 1, run);
    for (size_t i = 0; i < sums.size(); i += static_cast<size_t>(parts)) {
      double sum = 0;
      for (std::int64_t d = 0; d < parts; ++d) sum += sums[i + static_cast<size_t>(d)];
      const std::int64_t e = static_cast<std::int64_t>(i) / parts;
      put(e, e % s_.n, sum);
    }
  }

 private:
  static constexpr std::int64_t square = 64, part = 8192, stretch = 2048;

  void put(std::int64_t at, std::int64_t column, double sum) const {
    y_[at] = static_cast<T>(sum) + (bias_ ? bias_[column] : T(0));
  }

  struct Range {
    std::int64_t first, count;
  };

  // Some of an operand's `all` rows, over a range of k.
  struct Rows {
    const T* data;
    std::int64_t step;
  };
  Rows rows_of(const T* x, bool lie, std::int64_t all, Range rows, Range k, T* gathered) const {
    if (lie) return {x + rows.first * s_.k + k.first, s_.k};
    if (all == 1) return {x + k.first, 0};
    for (std::int64_t r = 0; r < rows.count; ++r)
      gather_row(x + k.first * all + rows.first + r, all, k.count, gathered + r * stretch);
    return {gathered, stretch};
  }

  // f(element its row begins with, column, sum) for a square from (i, j) on of product n, over part
  // d of k.
  template <class F>
  void sum_square(std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t d, T* near,
                  F&& f) const {
    const bool lie = (!s_.transpose_a || s_.m == 1) && (s_.transpose_b || s_.n == 1);
    if (lie && std::min(s_.m, s_.n) == 1) {  // a row after another: memory is read fastest so
      const T *a = a_ + n * s_.m * s_.k + d * part, *b = b_ + n * s_.k * s_.n + d * part;
      for (std::int64_t c = j; c < std::min(s_.n, j + square); ++c)
        for (std::int64_t r = i; r < std::min(s_.m, i + square); ++r) {
          double sum = 0;
          dots<1, 1>({a + r * s_.k, 0}, {b + c * s_.k, 0}, std::min(part, s_.k - d * part), &sum);
          f(r * s_.n, c, sum);
        }
      return;
    }
    for (std::int64_t c = j; c < std::min(s_.n, j + square); c += 4)
      for (std::int64_t r = i; r < std::min(s_.m, i + square); r += 4) {
        const std::int64_t rows = std::min<std::int64_t>(4, s_.m - r);
        const std::int64_t cols = std::min<std::int64_t>(4, s_.n - c);
        double sums[16] = {};
        sum_block(n, {r, rows}, {c, cols}, d, near, sums);
        const double* sum = sums;
        for (std::int64_t e = r * s_.n; e < (r + rows) * s_.n; e += s_.n)
          for (std::int64_t v = c; v < c + cols; ++v) f(e, v, *sum++);
      }
  }

  void sum_block(std::int64_t n, Range rows, Range cols, std::int64_t d, T* near,
                 double* sums) const {
    static constexpr auto table = []<int... k>(std::integer_sequence<int, k...>) {
      return std::array{&Dots::dots<k / 4 + 1, k % 4 + 1>...};
    }
    (std::make_integer_sequence<int, 16>{});
    const T *a = a_ + n * s_.m * s_.k, *b = b_ + n * s_.k * s_.n;
    const std::int64_t end = std::min(s_.k, (d + 1) * part);
    for (std::int64_t k = d * part; k < end; k += stretch) {
      const std::int64_t length = std::min(stretch, end - k);
      table[static_cast<size_t>(rows.count * 4 + cols.count - 5)](
          rows_of(a, !s_.transpose_a, s_.m, rows, {k, length}, near),
          rows_of(b, s_.transpose_b, s_.n, cols, {k, length}, near + 4 * stretch), length, sums);
    }
  }

  // Sums that need not wait for each other: several of each where there are few.
  template <int rows, int cols>
  static void dots(Rows a, Rows b, std::int64_t k, double* sums) {
    using namespace Eigen::internal;
    using P = Packet<T>;
    constexpr int l = lanes<T>;
    constexpr int turns = std::max(1, 4 / (rows * cols));
    P sum[turns][rows * cols] = {};
    const auto step = [&](P* to, auto load) {
      P right[cols];
      for (int c = 0; c < cols; ++c) right[c] = load(b.data + c * b.step);
      for (int r = 0; r < rows; ++r) {
        const P left = load(a.data + r * a.step);
        for (int c = 0; c < cols; ++c) to[r * cols + c] = pmadd(left, right[c], to[r * cols + c]);
      }
    };
    std::int64_t i = 0;
    for (; i + turns * l <= k; i += turns * l)
      for (int t = 0; t < turns; ++t)
        step(sum[t], [&](const T* p) { return ploadu<P>(p + i + t * l); });
    for (; i + l <= k; i += l) step(sum[0], [&](const T* p) { return ploadu<P>(p + i); });
    if (i < k) step(sum[0], [&](const T* p) { return load_up_to(p + i, k - i).v; });
    for (int e = 0; e < rows * cols; ++e) {
      for (int t = 1; t < turns; ++t) sum[0][e] = padd(sum[0][e], sum[t][e]);
      sums[e] += static_cast<double>(predux(sum[0][e]));
    }
  }

  const GemmSize s_;
  const T *const a_, *const b_, *const bias_;
  T* const y_;
};

}  // namespace ebb::cpu
