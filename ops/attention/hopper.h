// Internal: not in <ebb/ebb.h>, not installed.
// Flash attention on the tensor cores of Hopper GPUs, for bf16 and a head_dim of up to 128. Each
// does what gpu::flash_attention does and returns true, or nothing and false where it cannot:
// another GPU or dtype, rows that do not begin at 16 bytes, a binary without sm_90a code.
#pragma once
#include "ebb/ops/attention/flash_attention.h"

namespace ebb::gpu::hopper {

bool flash_attention(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                     const Tensor& v, Tensor& y, Tensor& lse);
bool flash_attention_backward(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                              const Tensor& v, const Tensor& y, const Tensor& lse, const Tensor& dy,
                              Tensor& dq, Tensor& dk, Tensor& dv);

}  // namespace ebb::gpu::hopper
