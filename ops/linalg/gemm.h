// Internal: not in <ebb/ebb.h>, not installed.
// y = op(a) · op(b) (+ bias in every row): the one matrix product under matmul() and linear().
//
// a [batch,m,k], or [batch,k,m] when it is to be read transposed; b [batch,k,n] or [batch,n,k];
// bias [n] or undefined; y [batch,m,n]. Ranks are the caller's business: only the elements count.
// k = 0 gives zeros or the bias; m, n or batch 0 gives nothing and asks no library.
//
// CPU: packed panels and a register-blocked kernel, ours because Eigen's product does not split a
// long k over threads and is slow where one side is short. GPU: cuBLASLt. In both the order of the
// sums follows from the sizes alone, so the bits do not depend on the number of threads.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct GemmSize {
  std::int64_t batch, m, n, k;
  bool transpose_a = false;
  bool transpose_b = false;
};

using Gemm = void(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
                  const Tensor& bias, Tensor& y);

namespace cpu {
Gemm gemm;
// The same on plain arrays, for kernels that make their own; T is float or double, bias may be
// null.
template <class T>
void multiply(const GemmSize& size, const T* a, const T* b, const T* bias, T* y);
}  // namespace cpu
namespace gpu {
Gemm gemm;
}

}  // namespace ebb
