// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's matrix product where one side is short and the sums are long: dots of rows, SIMD along
// the sum, up to four by four of them at a time. What does not lie in rows is gathered into some.
#pragma once
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "ebb/core/parallel.h"
#include "ebb/ops/linalg/gemm.h"
#include "ebb/ops/simd.h"

namespace ebb::cpu {

template <class S, class Y>
class Dots {
 public:
  Dots(const GemmSize& s, const S* a, const S* b, const S* bias, Y* y)
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
      S near[8 * stretch];
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
  using T = Wide<S>;
  static constexpr std::int64_t square = 64, part = 8192, stretch = 2048;

  void put(std::int64_t at, std::int64_t column, double sum) const {
    y_[at] = Y(T(sum) + (bias_ ? T(bias_[column]) : T(0)));
  }

  struct Range {
    std::int64_t first, count;
  };

  // Some of an operand's `all` rows, over a range of k.
  struct Rows {
    const S* data;
    std::int64_t step;
  };
  Rows rows_of(const S* x, bool lie, std::int64_t all, Range rows, Range k, S* gathered) const {
    if (lie) return {x + rows.first * s_.k + k.first, s_.k};
    if (all == 1) return {x + k.first, 0};
    for (std::int64_t r = 0; r < rows.count; ++r)
      gather_row(x + k.first * all + rows.first + r, all, k.count, gathered + r * stretch);
    return {gathered, stretch};
  }

  // f(element its row begins with, column, sum) for a square from (i, j) on of product n, over part
  // d of k.
  template <class F>
  void sum_square(std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t d, S* near,
                  F&& f) const {
    const bool lie = (!s_.transpose_a || s_.m == 1) && (s_.transpose_b || s_.n == 1);
    if (lie && std::min(s_.m, s_.n) == 1) {  // a row after another: memory is read fastest so
      const S *a = a_ + n * s_.m * s_.k + d * part, *b = b_ + n * s_.k * s_.n + d * part;
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

  void sum_block(std::int64_t n, Range rows, Range cols, std::int64_t d, S* near,
                 double* sums) const {
    static constexpr auto table = []<int... k>(std::integer_sequence<int, k...>) {
      return std::array{&Dots::dots<k / 4 + 1, k % 4 + 1>...};
    }
    (std::make_integer_sequence<int, 16>{});
    const S *a = a_ + n * s_.m * s_.k, *b = b_ + n * s_.k * s_.n;
    const std::int64_t end = std::min(s_.k, (d + 1) * part);
    for (std::int64_t k = d * part; k < end; k += stretch) {
      const std::int64_t length = std::min(stretch, end - k);
      table[static_cast<size_t>(rows.count * 4 + cols.count - 5)](
          rows_of(a, !s_.transpose_a, s_.m, rows, {k, length}, near),
          rows_of(b, s_.transpose_b, s_.n, cols, {k, length}, near + 4 * stretch), length, sums);
    }
  }

  // As many numbers as a register holds, as registers of T, in whatever order: that of a is that of
  // b. Of bf16 those at even places and those at odd ones.
  static constexpr int width = sizeof(Packet<T>) / sizeof(S), registers = sizeof(T) / sizeof(S);
  struct Numbers {
    Packet<T> of[registers];
  };
  static Numbers load(const S* p) {
    if constexpr (registers == 1) {
      return {{Simd<T>::load(p).v}};
    } else {
      typename Simd<T>::Words both;
      std::memcpy(&both, p, sizeof both);
      return {{Packet<T>(both << 16), Packet<T>(both & 0xffff0000u)}};
    }
  }
  // The first n < width, then zeros.
  static Numbers load(const S* p, std::int64_t n) {
    Numbers x = {};
    for (int i = 0; i < registers && n > 0; ++i, p += lanes<T>, n -= lanes<T>)
      x.of[i] = select(before<T>(n, 0), Simd<T>::load(p, n), T(0)).v;
    return x;
  }

  // Sums that need not wait for each other: several of each where there are few.
  template <int rows, int cols>
  static void dots(Rows a, Rows b, std::int64_t k, double* sums) {
    using namespace Eigen::internal;
    constexpr int turns = std::max(1, 4 / (rows * cols));
    Packet<T> sum[turns][rows * cols] = {};
    const auto step = [&](Packet<T>* to, std::int64_t i, auto... n) {
      Numbers right[cols];
      for (int c = 0; c < cols; ++c) right[c] = load(b.data + c * b.step + i, n...);
      for (int r = 0; r < rows; ++r) {
        const Numbers left = load(a.data + r * a.step + i, n...);
        for (int c = 0; c < cols; ++c)
          for (int h = 0; h < registers; ++h)
            to[r * cols + c] = pmadd(left.of[h], right[c].of[h], to[r * cols + c]);
      }
    };
    std::int64_t i = 0;
    for (; i + turns * width <= k; i += turns * width)
      for (int t = 0; t < turns; ++t) step(sum[t], i + t * width);
    for (; i + width <= k; i += width) step(sum[0], i);
    if (i < k) step(sum[0], i, k - i);
    for (int e = 0; e < rows * cols; ++e) {
      for (int t = 1; t < turns; ++t) sum[0][e] = padd(sum[0][e], sum[t][e]);
      sums[e] += static_cast<double>(predux(sum[0][e]));
    }
  }

  const GemmSize s_;
  const S *const a_, *const b_, *const bias_;
  Y* const y_;
};

}  // namespace ebb::cpu
