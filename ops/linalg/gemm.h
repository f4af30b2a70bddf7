// Internal: not in <ebb/ebb.h>, not installed.
// y = op(a) · op(b) (+ bias in every row) (+ plus): the one matrix product under matmul() and
// linear().
//
// a [batch,m,k], or [batch,k,m] when it is to be read transposed; b [batch,k,n] or [batch,n,k];
// bias [n] or undefined; y and plus, if defined, [batch,m,n],
// one tensor if y is to be added to. Ranks are the caller's business: only
// the elements count. k = 0 gives zeros or the bias; m, n or batch 0 gives nothing and asks no
// library.
//
// CPU: packed panels and a register-blocked kernel, ours because Eigen's product does not split a
// long k over threads and is slow where one side is short; bf16 is read as it is, added up in f32
// and rounded once. GPU: cuBLASLt. In both the order of the
// sums follows from the sizes alone, so the bits do not depend on the number of threads.
#pragma once
#include <compare>

#include "ebb/ops/ops.h"

namespace ebb {

struct GemmSize {
  std::int64_t batch, m, n, k;
  bool transpose_a = false;
  bool transpose_b = false;

  auto operator<=>(const GemmSize&) const = default;
};

using Gemm = void(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
                  const Tensor& bias, const Tensor& plus, Tensor& y);

// h = op(a) · op(b) (+ bias), y = gelu(h), and dh = op(a) · op(b) ⊙ gelu'(h), in gelu's tanh form,
// of one batch. On the GPU in bf16 the product's own last step, where there is one for the sizes:
// that spares a pass over memory, and gelu takes the sums before they are rounded.
using GemmGelu = void(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
                      const Tensor& bias, Tensor& h, Tensor& y);
using GemmGeluBackward = void(std::string_view op, const GemmSize& size, const Tensor& a,
                              const Tensor& b, const Tensor& h, Tensor& dh);

namespace cpu {
Gemm gemm;
GemmGelu gemm_gelu;
GemmGeluBackward gemm_gelu_backward;
// The same on plain arrays, for kernels that make their own: float, double, or bf16 with sums in
// f32, which y may keep as they are; bias may be null.
template <class S, class Y>
void multiply(const GemmSize& size, const S* a, const S* b, const S* bias, Y* y);
}  // namespace cpu
namespace gpu {
Gemm gemm;
GemmGelu gemm_gelu;
GemmGeluBackward gemm_gelu_backward;
// y[i] = op(a) · b[i] (+ bias [m] in every column): a is one matrix for the whole batch.
void gemm_each(std::string_view op, const GemmSize& size, const Tensor& a, const Tensor& b,
               const Tensor& bias, Tensor& y);
void forget_plans(Device device);  // for tests: algorithms are then chosen anew
}  // namespace gpu

}  // namespace ebb
