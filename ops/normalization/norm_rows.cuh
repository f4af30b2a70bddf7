// Internal: not in <ebb/ebb.h>, not installed.
// What the kernels of norm_rows.h share: rows that a group of threads holds (norm_rows.cu, and on
// Hopper norm_ring.cu), rows in slices (norm_slices.cu), and few long ones (norm_held.cu).
#pragma once
#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"
#include "ebb/ops/columns.cuh"
#include "ebb/ops/normalization/norm_rows.h"

namespace ebb::gpu {

// a · b rounded on its own. Fused into the subtraction that follows, dy · w − mean(dy · w) would
// leave the product's rounding error where the difference is exactly 0, times a large rstd.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

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

template <class T, int count>
struct AffineGradients {
  T* dweight;  // or null
  T* dbias;    // or null
  __device__ void operator()(std::int64_t c, const double (&sum)[count]) const {
    using C = Compute<T>;
    if (dweight) dweight[c] = narrow<T>(static_cast<C>(sum[0]));
    if constexpr (count == 2)
      if (dbias) dbias[c] = narrow<T>(static_cast<C>(sum[1]));
  }
};

// dw and db, from the sums of some parts of the rows, [count][parts][cols].
template <class T, int count>
void add_parts(const char* op, const Compute<T>* sums, std::int64_t parts, std::int64_t cols,
               const AffineGradients<T, count>& finish, Device device) {
  using C = Compute<T>;
  const ColumnLayout layout{1, parts, cols};
  if constexpr (count == 2)
    columns<C, 2>(op, InputSums<C>{}, finish, layout, device, sums, sums + parts * cols);
  else
    columns<C, 1>(op, InputSums<C>{}, finish, layout, device, sums);
}

// *to = pack of 16 bytes: of words, as narrow() makes them, where store() joins elements.
template <class P>
__device__ void put(P* to, const P& pack) {
  static_assert(sizeof(P) == 16);
  *reinterpret_cast<uint4*>(to) = __builtin_bit_cast(uint4, pack);
}

// Groups of more than a warp have a block for themselves.
constexpr int block_threads(int group, int small) { return group <= warp_size ? small : group; }

// Rows so few and long that a group each would not fill the GPU.
inline bool few(const NormRows& s) { return s.rows < 128 && s.cols > 4096; }

// Those, and rows that are too wide for a group.
NormalizeRows normalize_slices;
NormalizeRowsBackward normalize_slices_backward;

// Of those, what a GPU can keep between two passes (norm_held.cu); false, and nothing done, if not.
bool normalize_held(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                    const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y);
bool normalize_held_backward(const char* op, const Tensor& x, const Tensor& dy, const NormRows& s,
                             const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                             Tensor& dx, Tensor& dweight, Tensor& dbias);

// Rows that pass through a Hopper's shared memory (norm_ring.cu); false, and nothing done, if not.
bool normalize_ring_backward(const char* op, const Tensor& x, const Tensor& dy, const NormRows& s,
                             const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                             Tensor& dx, Tensor& dweight, Tensor& dbias);

template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}
template <class T>
T* data_or_null(Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}

template <class... P>
bool all_aligned(const P*... p) {
  return ((reinterpret_cast<std::uintptr_t>(p) % 16 == 0) && ...);
}

}  // namespace ebb::gpu
