#include "ebb/ops/linalg/gemm.h"

#include "ebb/core/parallel.h"
#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/linalg/cpu_dots.h"
#include "ebb/ops/linalg/cpu_tiles.h"

namespace ebb {
namespace {

using namespace cpu::tiles;

constexpr std::int64_t chunk = 2 * depth;  // of k, where y has too few tiles to share out
constexpr std::int64_t few_tiles = 16;

// How the product is cut into tasks.
struct Cut {
  std::int64_t down, across, deep, chunk;
  Cut(const GemmSize& s, std::int64_t columns)
      : down((s.m + tile_rows - 1) / tile_rows),
        across((s.n + columns - 1) / columns),
        deep(1),
        chunk(s.k) {
    if (s.batch * down * across >= few_tiles || s.k < 2 * ::ebb::chunk) return;
    chunk = ::ebb::chunk;
    deep = (s.k + chunk - 1) / chunk;
  }
};

template <class T>
Task<T> task_at(const GemmSize& s, const Cut& cut, std::int64_t index, const T* a, const T* b,
                const T* bias, T* y) {
  const std::int64_t d = index % cut.deep;
  const std::int64_t j = index / cut.deep % cut.across * tile_columns<T>;
  const std::int64_t i = index / cut.deep / cut.across % cut.down * tile_rows;
  const std::int64_t n = index / cut.deep / cut.across / cut.down;
  const std::int64_t k = d * cut.chunk;
  const View<T> va{a + n * s.m * s.k, s.transpose_a ? 1 : s.k, s.transpose_a ? s.m : 1};
  const View<T> vb{b + n * s.k * s.n, s.transpose_b ? 1 : s.n, s.transpose_b ? s.k : 1};
  T* out = y + (d * s.batch + n) * s.m * s.n + i * s.n + j;
  return {std::min(tile_rows, s.m - i),
          std::min(tile_columns<T>, s.n - j),
          std::min(cut.chunk, s.k - k),
          {va.at(i, k), va.row, va.column},
          {vb.at(k, j), vb.row, vb.column},
          bias && d == 0 ? bias + j : nullptr,
          out,
          s.n};
}

template <class T>
void fill_rows(const GemmSize& s, const T* bias, T* y) {
  for (std::int64_t i = 0; i < s.batch * s.m; ++i) {
    if (bias)
      std::copy_n(bias, s.n, y + i * s.n);
    else
      std::fill_n(y + i * s.n, s.n, T(0));
  }
}

// Matrices of a few numbers each: the products take less time than packing them.
template <class T>
void multiply_tiny(const GemmSize& s, const T* a, const T* b, const T* bias, T* y) {
  const std::int64_t a_row = s.transpose_a ? 1 : s.k, a_column = s.transpose_a ? s.m : 1;
  const std::int64_t b_row = s.transpose_b ? 1 : s.n, b_column = s.transpose_b ? s.k : 1;
  parallel_for(s.batch, (1 << 14) / (s.m * s.n * s.k), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t r = 0; r < s.m; ++r)
        for (std::int64_t c = 0; c < s.n; ++c) {
          T sum = bias ? bias[c] : T(0);
          const T *left = a + i * s.m * s.k + r * a_row, *right = b + i * s.k * s.n + c * b_column;
          for (std::int64_t k = 0; k < s.k; ++k) sum += left[k * a_column] * right[k * b_row];
          y[(i * s.m + r) * s.n + c] = sum;
        }
  });
}

}  // namespace

template <class T>
void cpu::multiply(const GemmSize& s, const T* a, const T* b, const T* bias, T* y) {
  const std::int64_t size = s.batch * s.m * s.n;
  if (size == 0) return;
  if (s.k == 0) return fill_rows(s, bias, y);
  if (s.batch > 1 && s.m * s.n * s.k <= 64) return multiply_tiny(s, a, b, bias, y);
  if (Dots<T>::fit(s)) return Dots<T>(s, a, b, bias, y)();
  if (s.n == 1 && s.m > 1) {
    multiply<T>({s.batch, 1, s.m, s.k, false, !s.transpose_a}, b, a, nullptr, y);
    if (bias) array(y, size) += *bias;
    return;
  }
  const Cut cut(s, tile_columns<T>);
  const std::int64_t tasks = s.batch * cut.down * cut.across * cut.deep;
  constexpr std::int64_t worth_a_thread = 1 << 18;  // multiplications; a result is worth 16
  const std::int64_t grain = 1 + worth_a_thread * tasks / (size * (s.k + 16));
  Array<T> parts(cut.deep > 1 ? cut.deep * size : 0);
  T* out = cut.deep > 1 ? parts.data() : y;
  parallel_for(tasks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) run_task(task_at(s, cut, i, a, b, bias, out));
  });
  if (cut.deep == 1) return;
  parallel_for(size, std::int64_t{1} << 12, [&](std::int64_t begin, std::int64_t end) {
    auto sum = array(y + begin, end - begin);
    sum = array(out + begin, end - begin);
    for (std::int64_t d = 1; d < cut.deep; ++d) sum += array(out + d * size + begin, end - begin);
  });
}

template void cpu::multiply(const GemmSize&, const float*, const float*, const float*, float*);
template void cpu::multiply(const GemmSize&, const double*, const double*, const double*, double*);

void cpu::gemm(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
               const Tensor& bias, const Tensor& plus, Tensor& y) {
  if (plus.defined() && plus.raw() == y.raw()) {
    Tensor product = empty_like(y);
    gemm(op, size, a, b, bias, {}, product);
    return accumulate(product, y);
  }
  visit<float, double>(y.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    multiply<T>(size, a.data<T>(), b.data<T>(), bias.defined() ? bias.data<T>() : nullptr,
                y.data<T>());
  });
  if (plus.defined()) accumulate(plus, y);
}

void cpu::gemm_gelu(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
                    const Tensor& bias, Tensor& h, Tensor& y) {
  gemm(op, size, a, b, bias, {}, h);
  gelu(h, true, y);
}

void cpu::gemm_gelu_backward(std::string_view op, const GemmSize& size, const Tensor& a,
                             const Tensor& b, const Tensor& h, Tensor& dh) {
  Tensor dy = empty_like(h);
  gemm(op, size, a, b, {}, {}, dy);
  gelu_backward(h, dy, true, dh);
}

}  // namespace ebb
