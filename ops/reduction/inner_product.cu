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
  const auto make = [&](auto zero) {
    using T = decltype(zero);
    return Scaled<T>{dy.data<T>()};
  };
  if (da.defined() && db.defined())
    return map_tensors("inner_product", make, std::tie(da, db), a, b);
  if (da.defined()) map_tensors("inner_product", make, std::tie(da), b);
  if (db.defined()) map_tensors("inner_product", make, std::tie(db), a);
}

}  // namespace ebb
