// Internal: not in <ebb/ebb.h>, not installed.
// What the kernels of the norms' backward pass share.
#pragma once
#include "ebb/ops/columns.cuh"
#include "ebb/ops/lanes.cuh"
#include "ebb/ops/normalization/norm_rows.cuh"

namespace ebb::gpu {

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

// a · b rounded on its own. Fused into the subtraction that follows, dy · w − mean(dy · w) would
// leave the product's rounding error where the difference is exactly 0, times a large rstd.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// dx = r (g − a − x̂ b) = r (g − (a + rest b) − half(x) (twice_r b), with the means a of g and b of
// g x̂.
template <class C>
struct RowGradient {
  Hat<C> hat;
  C r = 0;
  C shift = 0;
  C slope = 0;
  RowGradient() = default;
  __device__ RowGradient(const Hat<C>& of, C rstd, C a, C b)
      : hat(of), r(rstd), shift(a + of.rest * b), slope(of.twice_r * b) {}
  __device__ C operator()(C g, C x) const { return r * (g - shift - hat.half(x) * slope); }
};

// dy and x̂ of pack k of x and dy, zeros unless they are there.
template <class C, class L, int width>
__device__ void upstream_and_hat(const L& lanes, int k, bool inside, const Hat<C>& hat,
                                 const typename L::P& x, const typename L::P& dy, C (&d)[width],
                                 C (&h)[width]) {
#pragma unroll
  for (int j = 0; j < width; ++j) {
    d[j] = widen(dy, j);
    h[j] = hat(widen(x, j));
  }
  if (inside && lanes.whole(k)) return;
#pragma unroll
  for (int j = 0; j < width; ++j)
    if (!inside || !lanes.has(k, j)) d[j] = h[j] = 0;
}

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

// What a thread has found of its columns of a row or a slice of one, the k-th pack of `threads`,
// which it adds to or moves to a place in memory.
template <int count, int packs, int width, int threads>
struct OwnSums {
  using Row = Pack<float, width>;
  float v[count][packs][width] = {};

  template <class F>
  __device__ void each(int lane, int cols, const F& f) {
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const int column = (k * threads + lane) * width;
        if (column < cols) f(q, column, v[q][k]);
      }
  }
  __device__ void add(int lane, int cols, const float* from, std::int64_t stride) {
    each(lane, cols, [&](int q, int column, float(&sum)[width]) {
      const Row row = *reinterpret_cast<const Row*>(from + q * stride + column);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += row.v[j];
    });
  }
  __device__ void move(int lane, int cols, float* to, std::int64_t stride) {
    each(lane, cols, [&](int q, int column, float(&sum)[width]) {
      store(reinterpret_cast<Row*>(to + q * stride + column), narrow<float>(sum));
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] = 0;
    });
  }
};

// False, and nothing done, if they cannot.
bool normalize_spread_backward(const NormalizeBackward& n);
bool normalize_few_backward(const NormalizeBackward& n);
bool normalize_ring_backward(const NormalizeBackward& n);

void normalize_slices_backward(const NormalizeBackward& n);  // all rows

}  // namespace ebb::gpu
