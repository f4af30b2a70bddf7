#include "ebb/ops/normalization/l2_normalize.h"

#include "ebb/ops/reduction/softmax.cuh"

namespace ebb {
namespace {

template <class T>
struct Normalize {
  using C = gpu::Compute<T>;
  // Between these no square that matters has vanished or overflowed.
  static constexpr double lowest = sizeof(C) == 4 ? 0x1p-80 : 0x1p-900;
  static constexpr double highest = sizeof(C) == 4 ? 0x1p127 : 0x1p1023;
  double eps;
  T* y;
  C* scale;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double norm = sqrt(square(row));
    const C s = static_cast<C>(norm <= eps ? 1 / eps : 1 / norm);
    row.write(y, [=](auto, C x) { return x * s; });
    if (row.leader()) scale[row.index()] = norm <= eps ? -s : s;
  }

 private:
  // Σ x²
  template <class Row>
  __device__ double square(Row& row) const {
    if constexpr (Row::of_grid) {
      return exact(row);
    } else {
      const double fast = row.sum([](auto, C x) { return x * x; });
      const bool lost = !(lowest < fast && fast < highest);
      if (!__syncthreads_or(lost)) return fast;
      const double slow = exact(row);  // the block adds up together, for the rows that need it
      return lost ? slow : fast;
    }
  }
  template <class Row>
  __device__ double exact(Row& row) const {
    double sum = 0;
    row.each([&](auto, C x) { sum += static_cast<double>(x) * static_cast<double>(x); });
    return row.reduce(gpu::Sum{}, sum);
  }
};

template <class T>
struct NormalizeBackward {
  using C = gpu::Compute<T>;
  const C* scale;
  T* dx;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const C s = scale[row.index()];
    C dot = row.sum([](auto, C y, C dy) { return y * dy; });
    if (s < 0) dot = 0;
    const C factor = s < 0 ? -s : s;
    row.write(dx, [=](auto, C y, C dy) { return (dy - y * dot) * factor; });
  }
};

}  // namespace

void gpu::l2_normalize(const Tensor& x, const View& v, double eps, Tensor& y, Tensor& scale) {
  visit<float, double, bf16>(x.dtype(), "l2_normalize", [&](auto zero) {
    using T = decltype(zero);
    const Normalize<T> body{eps, y.data<T>(), scale.data<Compute<T>>()};
    lines<T>("l2_normalize", body, v, x.device(), x.data<T>());
  });
}

void gpu::l2_normalize_backward(const Tensor& y, const Tensor& dy, const View& v,
                                const Tensor& scale, Tensor& dx) {
  visit<float, double, bf16>(y.dtype(), "l2_normalize", [&](auto zero) {
    using T = decltype(zero);
    const NormalizeBackward<T> body{scale.data<Compute<T>>(), dx.data<T>()};
    lines<T>("l2_normalize", body, v, y.device(), y.data<T>(), dy.data<T>());
  });
}

}  // namespace ebb
