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

// The same for f32, a head_dim of 33 to 128 and lengths of some hundreds, but for what numbers
// reach that are odd, tf32.cuh says which: what comes back has their rows, and is undefined where
// nothing was done.
Tensor flash_attention_tf32(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                            const Tensor& v, Tensor& y, Tensor& lse);
// d [batch,heads,length_q]: D.
Tensor flash_attention_tf32_backward(const FlashAttentionSize& size, const Tensor& q,
                                     const Tensor& k, const Tensor& v, const Tensor& lse,
                                     const Tensor& d, const Tensor& dy, Tensor& dq, Tensor& dk,
                                     Tensor& dv);

}  // namespace ebb::gpu::hopper
