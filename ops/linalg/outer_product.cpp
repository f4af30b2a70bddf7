#include "ebb/ops/linalg/outer_product.h"

#include "ebb/core/eigen.h"
#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/map.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor outer_product(const Tensor& a, const Tensor& b) {
  require_floating("outer_product", "a", a);
  require_alike("outer_product", "a", a, "b", b);
  require(a.rank() == 1, Kind::shape, "outer_product", "a must be [m]", a.shape(), "1 dimension");
  require(b.rank() == 1, Kind::shape, "outer_product", "b must be [n]", b.shape(), "1 dimension");
  Tensor y = empty({a.numel(), b.numel()}, a.options());
  run_as_is<cpu::outer_product, gpu::outer_product>(a.device(), a, b, y);
  return record("outer_product", y, {a, b},
                [a = Saved(a), b = Saved(b), needs_a = a.requires_grad(),
                 needs_b = b.requires_grad()](const Tensor& dy) -> Gradients {
                  Tensor da = needs_a ? empty_like(a) : Tensor();
                  Tensor db = needs_b ? empty_like(b) : Tensor();
                  run<cpu::outer_product_backward, gpu::outer_product_backward>(
                      dy.device(), a.get(), b.get(), dy, da, db);
                  return {da, db};
                });
}

namespace {

// Not inlined, so that a gradient has the same bits whether or not the other one is wanted too.
template <class T>
[[gnu::noinline]] T dot(const T* a, const T* b, std::int64_t n) {
  return T(cpu::sum_of(0, n, [=](std::int64_t i) { return a[i] * b[i]; }));
}

template <class T>
[[gnu::noinline]] void add_scaled(const T* row, T scale, cpu::Array<T>& sums) {
  sums += cpu::array(row, sums.size()) * scale;
}

// At most 64 parts of the rows whatever the number of threads; a window of 64 rows adds up in T.
template <class T>
void gradients(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  constexpr std::int64_t window = 64;
  const std::int64_t m = a.numel();
  const std::int64_t n = b.numel();
  const T* left = a.data<T>();
  const T* right = b.data<T>();
  const T* g = dy.data<T>();
  T* to = da.defined() ? da.data<T>() : nullptr;
  const std::int64_t part = std::max<std::int64_t>(window, (m + 63) / 64);
  const std::int64_t parts = (m + part - 1) / part;
  std::vector<cpu::Array<double>> partial(static_cast<size_t>(parts),
                                          cpu::Array<double>::Zero(db.defined() ? n : 0));
  parallel_for(parts, 32768 / (part * (n + 8)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t last = std::min(m, (p + 1) * part);
      for (std::int64_t i = p * part; i < last; i += window) {
        cpu::Array<T> near = cpu::Array<T>::Zero(db.defined() ? n : 0);
        for (std::int64_t k = i; k < std::min(last, i + window); ++k) {
          const T* row = g + k * n;
          if (to) to[k] = dot(row, right, n);
          if (db.defined()) add_scaled(row, left[k], near);
        }
        partial[static_cast<size_t>(p)] += near.template cast<double>();
      }
    }
  });
  if (!db.defined()) return;
  cpu::Array<double> total = cpu::Array<double>::Zero(n);
  for (const cpu::Array<double>& one : partial) total += one;
  cpu::array(db.data<T>(), n) = total.template cast<T>();
}

}  // namespace

void cpu::outer_product(const Tensor& a, const Tensor& b, Tensor& y) {
  constexpr std::int64_t shortest = 8;
  const std::int64_t n = b.numel();
  if (n < shortest)  // rows that fill no register
    return arithmetic(Sign::mul, Tensor(a.storage(), {a.numel(), 1}, a.dtype()), b, y);
  visit<float, double, bf16>(a.dtype(), "outer_product", [&](auto zero) {
    using T = decltype(zero);
    using V = Simd<Wide<T>>;
    const T *left = a.data<T>(), *right = b.data<T>();
    T* to = y.data<T>();
    parallel_for(a.numel(), 16384 / (n + 8), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        map_row(
            to + i * n, n, [scale = V(Wide<T>(left[i]))](auto b) { return b * scale; }, right);
    });
  });
}

void cpu::outer_product_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                 Tensor& db) {
  visit<float, double>(a.dtype(), "outer_product",
                       [&](auto zero) { gradients<decltype(zero)>(a, b, dy, da, db); });
}

}  // namespace ebb
