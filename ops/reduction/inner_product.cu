#include "ebb/ops/reduction/inner_product.h"

#include "ebb/ops/map.cuh"
#include "ebb/ops/slices.cuh"

namespace ebb {
namespace gpu {
namespace {

template <class T>
struct Store {
  T* y;
  __device__ void operator()(std::int64_t, double total) const {
    *y = narrow<T>(static_cast<Compute<T>>(total));
  }
};

template <class T>
struct Scaled {
  using C = Compute<T>;
  const T* dy;
  __device__ C operator()(C x) const { return x * widen(*dy); }
  __device__ Values<C, 2> operator()(C a, C b) const {
    const C g = widen(*dy);
    return {b * g, a * g};
  }
};

}  // namespace
}  // namespace gpu

void gpu::inner_product(const Tensor& a, const Tensor& b, Tensor& y) {
  visit<float, double, bf16>(a.dtype(), "inner_product", [&](auto zero) {
    using T = decltype(zero);
    sum_slices<T>("inner_product", Product{}, Store<T>{y.data<T>()}, 1, a.numel(), a.device(),
                  a.data<T>(), b.data<T>());
  });
}

void gpu::inner_product_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                 Tensor& db) {
  visit<float, double, bf16>(a.dtype(), "inner_product", [&](auto zero) {
    using T = decltype(zero);
    const Scaled<T> scaled{dy.data<T>()};
    const std::int64_t n = a.numel();
    if (da.defined() && db.defined()) {
      const Pointers<T, 2> both{{da.data<T>(), db.data<T>()}};
      return map<T>("inner_product", scaled, n, both, a.data<T>(), b.data<T>());
    }
    if (da.defined()) map<T>("inner_product", scaled, n, da.data<T>(), b.data<T>());
    if (db.defined()) map<T>("inner_product", scaled, n, db.data<T>(), a.data<T>());
  });
}

}  // namespace ebb
