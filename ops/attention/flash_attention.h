// y = softmax(scale · q kᵀ) v, each head for itself
// D = Σ dy∘y of each row, P = softmax, dS = P∘(dy vᵀ − D)
// dv = Pᵀ dy    dq = scale · dS k    dk = scale · dSᵀ q
//
// Shapes: q [batch,length_q,heads,head_dim], k v [batch,length_k,heads,head_dim] → q's; or the
// three packed, qkv [batch,length,3,heads,head_dim] → [batch,length,heads,head_dim], with a packed
// gradient: nothing is copied apart. The scores are never stored: memory grows with the lengths,
// not with their product. Both directions give the same bits every time.
//
// is_causal: query i sees the keys j <= i, aligned at the top left whatever the lengths; what it
// does not see has no effect on it, be it NaN. A row that sees no key, or only scores of −∞, is 0
// and has no weight in any gradient. NaN stays in its row.
//
// Journal day 5.
// Errors: `shape` (rank, sizes that do not agree, head_dim 0), `dtype`, `device`, `value` for a
// scale that is not finite, `limit` for a head_dim above 256 on the GPU, and above 128 in f64 on
// one whose blocks have less than 99 KB of shared memory. Source: Dao 2023, arXiv:2307.08691.
#pragma once
#include <array>
#include <optional>

#include "ebb/ops/ops.h"

namespace ebb {

struct FlashAttentionOptions {
  bool is_causal = false;
  std::optional<double> scale = {};  // none: 1/√head_dim
};

Tensor flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       FlashAttentionOptions options = {});
Tensor flash_attention(const Tensor& qkv, FlashAttentionOptions options = {});

// Head h at position i of sequence b begins at (b·length + i) · row + h · head_dim, with length_q
// for q and dq, length_k for k, v, dk and dv. In y and dy rows are heads · head_dim apart always.
struct FlashAttentionSize {
  std::int64_t batch, length_q, length_k, heads, head_dim;
  std::int64_t
      row;  // elements from one position to the next: heads · head_dim; packed, 3 times that
  bool is_causal;
  double scale;
};

// Where q, k and v begin, or their gradients: packed, all are in q, and k and v are undefined.
template <class T, class AnyTensor>
auto attention_parts(const FlashAttentionSize& s, AnyTensor& q, AnyTensor& k, AnyTensor& v) {
  auto* first = q.template data<T>();
  if (k.defined()) return std::array{first, k.template data<T>(), v.template data<T>()};
  return std::array{first, first + s.heads * s.head_dim, first + 2 * s.heads * s.head_dim};
}

// lse [batch,heads,length_q] is log Σ exp(scores) of each row, −∞ for one that sees no key; f32, or
// f64 for f64. Every element of the outputs is written.
using FlashAttention = void(const FlashAttentionSize& size, const Tensor& q, const Tensor& k,
                            const Tensor& v, Tensor& y, Tensor& lse);
using FlashAttentionBackward = void(const FlashAttentionSize& size, const Tensor& q,
                                    const Tensor& k, const Tensor& v, const Tensor& y,
                                    const Tensor& lse, const Tensor& dy, Tensor& dq, Tensor& dk,
                                    Tensor& dv);
namespace cpu {
FlashAttention flash_attention;
FlashAttentionBackward flash_attention_backward;
}  // namespace cpu
namespace gpu {
FlashAttention flash_attention;
FlashAttentionBackward flash_attention_backward;
}  // namespace gpu

}  // namespace ebb
