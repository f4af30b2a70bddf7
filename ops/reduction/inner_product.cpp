#include "ebb/ops/reduction/inner_product.h"

#include "ebb/ops/map.h"
#include "ebb/ops/sums.h"

namespace ebb {

Tensor inner_product(const Tensor& a, const Tensor& b) {
  require_floating("inner_product", "a", a);
  require_alike("inner_product", "a", a, "b", b);
  require(a.rank() == 1, Kind::shape, "inner_product", "a must be [n]", a.shape(), "1 dimension");
  require_shape("inner_product", "b", b, a.shape());
  Tensor y = empty({}, a.options());
  run_as_is<cpu::inner_product, gpu::inner_product>(a.device(), a, b, y);
  return record("inner_product", y, {a, b},
                [a = Saved(a), b = Saved(b), needs_a = a.requires_grad(),
                 needs_b = b.requires_grad()](const Tensor& dy) -> Gradients {
                  Tensor da = needs_a ? empty_like(a) : Tensor();
                  Tensor db = needs_b ? empty_like(b) : Tensor();
                  run_as_is<cpu::inner_product_backward, gpu::inner_product_backward>(
                      dy.device(), a.get(), b.get(), dy, da, db);
                  return {da, db};
                });
}

void cpu::inner_product(const Tensor& a, const Tensor& b, Tensor& y) {
  visit<float, double, bf16>(a.dtype(), "inner_product", [&](auto zero) {
    using T = decltype(zero);
    const auto part = [p = a.data<T>(), q = b.data<T>()](std::int64_t begin, std::int64_t end) {
      const auto product = [](auto a, auto b) { return a * b; };
      const double sum = quick_sum_row<T>(end - begin, product, p + begin, q + begin);
      if (std::isfinite(sum)) return sum;
      return sum_row<T>(  // a product, or four of them, may be too large for T alone
          end - begin, [=](Simd<double> a, Simd<double> b) { return product(a, b); }, p + begin,
          q + begin);
    };
    *y.data<T>() = T(Wide<T>(block_sum<double>(a.numel(), 1 << 16, part)));
  });
}

void cpu::inner_product_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                 Tensor& db) {
  const auto scaled = [g = dy.item()](auto x) { return x * g; };
  if (da.defined()) map(da, b, scaled);
  if (db.defined()) map(db, a, scaled);
}

}  // namespace ebb
