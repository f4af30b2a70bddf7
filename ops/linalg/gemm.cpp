#include "ebb/ops/linalg/gemm.h"

#include "ebb/core/parallel.h"
#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/linalg/cpu_dots.h"
#include "ebb/ops/linalg/cpu_tiles.h"

namespace ebb {
namespace {

using namespace cpu::tiles;
using cpu::Wide;

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

template <class S, class Y>
Task<S, Y> task_at(const GemmSize& s, const Cut& cut, std::int64_t index, const S* a, const S* b,
                   const S* bias, Y* y) {
  constexpr std::int64_t columns = tile_columns<Wide<S>>;
  const std::int64_t d = index % cut.deep;
  const std::int64_t j = index / cut.deep % cut.across * columns;
  const std::int64_t i = index / cut.deep / cut.across % cut.down * tile_rows;
  const std::int64_t n = index / cut.deep / cut.across / cut.down;
  const std::int64_t k = d * cut.chunk;
  const View<S> va{a + n * s.m * s.k, s.transpose_a ? 1 : s.k, s.transpose_a ? s.m : 1};
  const View<S> vb{b + n * s.k * s.n, s.transpose_b ? 1 : s.n, s.transpose_b ? s.k : 1};
  Y* out = y + (d * s.batch + n) * s.m * s.n + i * s.n + j;
  return {std::min(tile_rows, s.m - i),
          std::min(columns, s.n - j),
          std::min(cut.chunk, s.k - k),
          va.from(i, k),
          vb.from(k, j),
          bias && d == 0 ? bias + j : nullptr,
          out,
          s.n};
}

template <class S, class Y>
void fill_rows(const GemmSize& s, const S* bias, Y* y) {
  for (std::int64_t i = 0; i < s.batch * s.m; ++i) {
    if (bias)
      cpu::convert(bias, s.n, y + i * s.n);
    else
      std::fill_n(y + i * s.n, s.n, Y(0));
  }
}

// Matrices of a few numbers each: the products take less time than packing them.
template <class S, class Y>
void multiply_tiny(const GemmSize& s, const S* a, const S* b, const S* bias, Y* y) {
  using T = Wide<S>;
  const std::int64_t a_row = s.transpose_a ? 1 : s.k, a_column = s.transpose_a ? s.m : 1;
  const std::int64_t b_row = s.transpose_b ? 1 : s.n, b_column = s.transpose_b ? s.k : 1;
  parallel_for(s.batch, (1 << 14) / (s.m * s.n * s.k), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t r = 0; r < s.m; ++r)
        for (std::int64_t c = 0; c < s.n; ++c) {
          T sum = bias ? T(bias[c]) : T(0);
          const S *left = a + i * s.m * s.k + r * a_row, *right = b + i * s.k * s.n + c * b_column;
          for (std::int64_t k = 0; k < s.k; ++k) sum += T(left[k * a_column]) * T(right[k * b_row]);
          y[(i * s.m + r) * s.n + c] = Y(sum);
        }
  });
}

// y = Σ of `count` parts of n numbers, in their order.
template <class T, class Y>
void add_parts(T* parts, std::int64_t count, std::int64_t n, Y* y) {
  parallel_for(n, std::int64_t{1} << 12, [=](std::int64_t begin, std::int64_t end) {
    auto sum = cpu::array(parts + begin, end - begin);
    for (std::int64_t d = 1; d < count; ++d) sum += cpu::array(parts + d * n + begin, end - begin);
    cpu::convert(sum.data(), end - begin, y + begin);
  });
}

}  // namespace

template <class S, class Y>
void cpu::multiply(const GemmSize& s, const S* a, const S* b, const S* bias, Y* y) {
  using T = Wide<S>;
  const std::int64_t size = s.batch * s.m * s.n;
  if (size == 0) return;
  if (s.k == 0) return fill_rows(s, bias, y);
  if (s.batch > 1 && s.m * s.n * s.k <= 64) return multiply_tiny(s, a, b, bias, y);
  if (Dots<S, Y>::fit(s)) return Dots<S, Y>(s, a, b, bias, y)();
  if (s.n == 1 && s.m > 1) {
    const GemmSize turned{s.batch, 1, s.m, s.k, false, !s.transpose_a};
    if (!bias) return multiply<S, Y>(turned, b, a, nullptr, y);
    Array<T> sums(size);
    multiply<S, T>(turned, b, a, nullptr, sums.data());
    sums += T(*bias);
    return convert(sums.data(), size, y);
  }
  const Cut cut(s, tile_columns<T>);
  const std::int64_t tasks = s.batch * cut.down * cut.across * cut.deep;
  constexpr std::int64_t worth_a_thread = 1 << 18;  // multiplications; a result is worth 16
  const std::int64_t grain = 1 + worth_a_thread * tasks / (size * (s.k + 16));
  const auto run = [&](auto* out) {
    parallel_for(tasks, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) run_task(task_at(s, cut, i, a, b, bias, out));
    });
  };
  if (cut.deep == 1) return run(y);
  Array<T> parts(cut.deep * size);
  run(parts.data());
  add_parts(parts.data(), cut.deep, size, y);
}

template void cpu::multiply(const GemmSize&, const float*, const float*, const float*, float*);
template void cpu::multiply(const GemmSize&, const double*, const double*, const double*, double*);

namespace {

// y = x + plus, which may be y; x is y's dtype, or f32 that was not yet rounded.
void add(const Tensor& x, const Tensor& plus, Tensor& y) {
  if (plus.raw() == y.raw()) return cpu::accumulate(x, y);
  if (x.raw() == y.raw()) return cpu::accumulate(plus, y);
  const float* sums = x.data<float>();
  const bf16* more = plus.data<bf16>();
  bf16* to = y.data<bf16>();
  using V = cpu::Simd<float>;
  constexpr std::int64_t l = cpu::lanes<float>;
  parallel_for((y.numel() + l - 1) / l, cpu::map_grain / l,
               [=, n = y.numel()](auto begin, auto end) {
                 for (std::int64_t i = begin * l; i < std::min(n, end * l); i += l)
                   (V::load(sums + i, n - i) + V::load(more + i, n - i)).store(to + i, n - i);
               });
}

}  // namespace

void cpu::gemm(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
               const Tensor& bias, const Tensor& plus, Tensor& y) {
  if (plus.defined() && (plus.raw() == y.raw() || y.dtype() == Dtype::bf16)) {
    Tensor product = empty(y.shape(), {.dtype = y.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
    gemm(op, size, a, b, bias, {}, product);
    return add(product, plus, y);
  }
  visit<float, double, bf16>(a.dtype(), op, [&](auto zero) {
    using S = decltype(zero);
    visit<S, Wide<S>>(y.dtype(), op, [&](auto zero) {
      using Y = decltype(zero);
      multiply<S, Y>(size, a.data<S>(), b.data<S>(), bias.defined() ? bias.data<S>() : nullptr,
                     y.data<Y>());
    });
  });
  if (plus.defined()) add(y, plus, y);
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
