// Internal: not in <ebb/ebb.h>, not installed.
// The tiers of flash attention's kernels, of which flash_attention.cu takes the first that can.
// Those for Hopper do nothing on another GPU and in a binary without sm_90a code, and say so.
//
// Backward all are of one form. A block owns rows of queries or, `of_keys`, of keys, and meets the
// tiles of the others; for keys P and dS lie on their sides:
//   own (q, dy), others (k, v):   x = S,   z = dP,   dq += dS k
//   own (k, v), others (q, dy):   x = Sᵀ,  z = dPᵀ,  dk += dSᵀ q,  dv += Pᵀ dy
// Queries that see no key, and those beyond the end, have a P of 0: their lse counts as +∞.
#pragma once
#include "ebb/ops/attention/flash_attention.h"

namespace ebb::gpu {
namespace hopper {

// bf16 of a head_dim up to 128 whose rows begin at 16 bytes: whether it was done.
bool flash_attention(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                     const Tensor& v, Tensor& y, Tensor& lse);
bool flash_attention_backward(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                              const Tensor& v, const Tensor& y, const Tensor& lse, const Tensor& dy,
                              Tensor& dq, Tensor& dk, Tensor& dv);

// f32 of a head_dim from 33 to 128 and lengths of some hundreds, but for what numbers reach that
// are odd, tf32_pack.cuh says which: the rows of these, as odd.cuh has them, or an undefined tensor
// if nothing was done. d [batch,heads,length_q]: D.
Tensor flash_attention_tf32(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                            const Tensor& v, Tensor& y, Tensor& lse);
Tensor flash_attention_tf32_backward(const FlashAttentionSize& size, const Tensor& q,
                                     const Tensor& k, const Tensor& v, const Tensor& lse,
                                     const Tensor& d, const Tensor& dy, Tensor& dq, Tensor& dk,
                                     Tensor& dv);

}  // namespace hopper
namespace attention {

// Any dtype on any GPU: everything, or what the odd rows of the tier above reach.
void forward(const FlashAttentionSize& size, const Tensor& odd_rows, const Tensor& q,
             const Tensor& k, const Tensor& v, Tensor& y, Tensor& lse);
void backward(const FlashAttentionSize& size, const Tensor& odd_rows, const Tensor& q,
              const Tensor& k, const Tensor& v, const Tensor& lse, const Tensor& d,
              const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv);

}  // namespace attention
}  // namespace ebb::gpu
