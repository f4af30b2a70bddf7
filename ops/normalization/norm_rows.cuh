// Internal: not in <ebb/ebb.h>, not installed.
// What the kernels of norm_rows.h share. Who takes which rows is said where both functions begin:
// forward in norm_rows.cu, backward in norm_backward.cu.
#pragma once
#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"
#include "ebb/ops/columns.cuh"
#include "ebb/ops/normalization/norm_rows.h"

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
struct NormalizeBackward {
  const char* op;
  const Tensor& x;
  const Tensor& dy;
  const NormRows& s;
  const Tensor& weight;
  const Tensor& mean;
  const Tensor& rstd;
  Tensor& dx;
  Tensor& dweight;
  Tensor& dbias;
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

template <class... P>
bool all_aligned(const P*... p) {
  return ((reinterpret_cast<std::uintptr_t>(p) % 16 == 0) && ...);
}

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
  explicit AffineGradients(const NormalizeBackward& n)
      : dweight(data_or_null<T>(n.dweight)), dbias(data_or_null<T>(n.dbias)) {}
  __device__ void operator()(std::int64_t c, const double (&sum)[count]) const {
    using C = Compute<T>;
    if (dweight) dweight[c] = narrow<T>(static_cast<C>(sum[0]));
    if constexpr (count == 2)
      if (dbias) dbias[c] = narrow<T>(static_cast<C>(sum[1]));
  }
};

// What some parts of the rows leave of dw and db, [count][parts][cols], where somebody asks.
template <class T, int count>
class ParameterSums {
 public:
  ParameterSums(const NormalizeBackward& n, std::int64_t parts) : n_(n), parts_(parts) {
    if (parts > 0 && wanted(n)) sums_ = empty({count, parts, n.s.cols}, n.rstd.options());
  }
  static bool wanted(const NormalizeBackward& n) {
    return n.dweight.defined() || n.dbias.defined();
  }
  Compute<T>* data() { return data_or_null<Compute<T>>(sums_); }  // null where there are none

  void add_up() {
    using C = Compute<T>;
    if (!sums_.defined()) return;
    const ColumnLayout layout{1, parts_, n_.s.cols};
    const C* const sums = sums_.data<C>();
    const AffineGradients<T, count> finish(n_);
    if constexpr (count == 2)
      columns<C, 2>(n_.op, InputSums<C>{}, finish, layout, n_.x.device(), sums,
                    sums + parts_ * n_.s.cols);
    else
      columns<C, 1>(n_.op, InputSums<C>{}, finish, layout, n_.x.device(), sums);
  }

 private:
  const NormalizeBackward& n_;
  std::int64_t parts_;
  Tensor sums_;
};

// *to = pack, of words where it is of 16 bytes, as narrow() makes them: store() joins elements.
template <class P>
__device__ void put(P* to, const P& pack) {
  if constexpr (sizeof(P) == 16)
    *reinterpret_cast<uint4*>(to) = __builtin_bit_cast(uint4, pack);
  else
    *to = pack;
}

// Groups of more than a warp have a block for themselves.
constexpr int block_threads(int group, int small) { return group <= warp_size ? small : group; }

// Rows so few and long that a group each would not fill the GPU.
inline bool few(const NormRows& s) { return s.rows < 128 && s.cols > 4096; }

// False, and nothing done, if the rows are not for them.
bool normalize_spread(const Normalize& n);
bool normalize_spread_backward(const NormalizeBackward& n);
bool normalize_few_backward(const NormalizeBackward& n);
bool normalize_ring_backward(const NormalizeBackward& n);

// All rows.
void normalize_slices(const Normalize& n);
void normalize_slices_backward(const NormalizeBackward& n);

}  // namespace ebb::gpu
