// Internal: not in <ebb/ebb.h>, not installed.
// What the kernels of norm_rows.h share. Who takes which rows is said where both functions begin:
// forward in norm_rows.cu, backward in norm_backward.cu.
#pragma once
#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"
#include "ebb/ops/exchange.cuh"
#include "ebb/ops/normalization/norm_rows.h"
#include "ebb/ops/packs.cuh"

namespace ebb::gpu {

// The arguments of the two functions of norm_rows.h, to hand on.
struct Normalize {
  const char* op;
  const Tensor& x;
  const NormRows& s;
  const Tensor& weight;
  const Tensor& bias;
  double eps;
  Tensor& mean;
  Tensor& rstd;
  Tensor& y;
};

// go.operator()<T, centred>() for the dtype, one of T, and for what the norm is.
template <class... T, class N, class Go>
void with_norm(const N& n, const Go& go) {
  visit<T...>(n.x.dtype(), n.op, [&](auto zero) {
    using E = decltype(zero);
    if (n.mean.defined())
      go.template operator()<E, true>();
    else
      go.template operator()<E, false>();
  });
}
// The same for kernels that f64 has not; false, and nothing done, if they cannot.
template <class N, class Go>
bool try_norm(const N& n, const Go& go) {
  bool done = false;
  if (n.x.dtype() != Dtype::f64)
    with_norm<float, bf16>(
        n, [&]<class T, bool centred>() { done = go.template operator()<T, centred>(); });
  return done;
}

// Of an argument that may be absent; batch_norm.cu, too.
template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}
template <class T>
T* data_or_null(Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}

// x̂ = (x − μ) · r = half(x) · twice_r + rest with μ as the nearest C and what that leaves of it, so
// that x − μ is right far from 0. By half: x − μ of finite numbers may overflow, and times an r of
// 0 be NaN; (x − μ)/2 may not.
template <class C>
struct Hat {
  C half_mean = 0;
  C rest = 0;
  C twice_r = 0;
  Hat() = default;
  __device__ Hat(double mean, C r) : half_mean(static_cast<C>(mean) / 2), twice_r(2 * r) {
    rest = static_cast<C>(mean / 2 - static_cast<double>(half_mean)) * -twice_r;
  }
  __device__ C half(C x) const { return C(0.5) * x - half_mean; }
  __device__ C operator()(C x) const { return half(x) * twice_r + rest; }
};

// The weight's pack from column `at` on: zeros unless it is there, ones where there is no weight.
template <int width, class T>
__device__ Pack<T, width> weight_pack(const T* weight, bool there, std::int64_t at) {
  if (weight) return load_if<width>(there, weight + at);
  Compute<T> ones[width];
#pragma unroll
  for (int j = 0; j < width; ++j) ones[j] = 1;
  return narrow<T>(ones);
}

// Rows so few and long that a group each would not fill the GPU.
inline bool few(const NormRows& s) { return s.rows < 128 && s.cols > 4096; }

bool normalize_spread(const Normalize& n);  // false, and nothing done, if it cannot
void normalize_slices(const Normalize& n);  // all rows

}  // namespace ebb::gpu
