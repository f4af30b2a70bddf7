// y = softmax(scale · q kᵀ) v, each head for itself
// D = Σ dy∘y of each row, P = softmax, dS = P∘(dy vᵀ − D)
// dv = Pᵀ dy    dq = scale · dS k    dk = scale · dSᵀ q
//
// The scores S = scale · q kᵀ are never stored: they are made tile by tile, once forward, and again
// backward. Forward a row meets the keys in tiles J, and keeps of those so far the largest score m,
// the sum of exponentials l, and the values o that they weigh, from m = −∞, l = 0, o = 0 on:
//   m' = max(m, S_J)    w = exp(S_J − m')    r = exp(m − m')    l' = r l + Σ w    o' = r o + w v_J
// In the end y = o / l and lse = m + log l. With that, P = exp(S − lse) of any tile by itself: in
// whatever order tiles are met backward, dq of a row adds up over tiles of keys, and dk and dv of a
// row over tiles of queries, each for itself.
//
// Shapes: q [batch,length_q,heads,head_dim], k v [batch,length_k,heads,head_dim] → q's; or the
// three packed, qkv [batch,length,3,heads,head_dim] → [batch,length,heads,head_dim], with a packed
// gradient: nothing is copied apart. Memory grows with the lengths, not with their product. Both
// directions give the same bits every time.
//
// On Hopper f32 of a head_dim from 33 to 128 and lengths of some hundreds runs on the tensor cores:
// with float32's exactness, and faster with TF32 where it is allowed. Meanwhile it needs room:
// forward 16 bytes for each element of k, backward 24 of k, then 32 of q; with TF32 half of that.
// Lengths and head_dim count as multiples of 64.
//
// is_causal: query i sees the keys j <= i, aligned at the top left whatever the lengths; what it
// does not see has no effect on it, be it NaN. A row that sees no key, or only scores of −∞, is 0
// and has no weight in any gradient. NaN stays in its row.
//
// dropout p: of the weights some become 0, and the others are divided by 1 − p; the gradients are
// those of that, with the mask of it twice:
//   y = P̂ v, P̂ = P∘M / (1 − p)    dv = P̂ᵀ dy    dS = P∘((dy vᵀ)∘M / (1 − p) − D)
// lse and D stay those of all weights. M is not stored: it is drawn again where it is needed, the
// same on every device. The weights of a head, [length_q,length_k], are dealt out in tiles of 16 ×
// 16, numbered through all heads (sequence · heads + head), row by row. In tile t, query i and key
// j of it get word 2 (i%2) + j%2 of philox(seed, 16 t + 4 (i%8/2) + j%8/2, index), turned right by
// 8 (2 (i/8) + j/8) bits. Below p · 2³² a weight is dropped; p counts in steps of 2⁻³². Four
// weights have the four turns of a word: that one is dropped tells little of another, whose
// chance is p ± 1/256 then (from p = 10⁻⁷ on).
//
// Journal day 5.
// Errors: `shape` (rank, sizes that do not agree, head_dim 0), `dtype`, `device`, `value` for a
// scale that is not finite or a dropout outside [0, 1), `limit` for a head_dim above 256 on the
// GPU, and above 128 in f64 on one whose blocks have less than 99 KB of shared memory. Source: Dao
// 2023, arXiv:2307.08691.
#pragma once
#include <array>
#include <optional>

#include "ebb/core/random.h"
#include "ebb/ops/ops.h"

namespace ebb {

struct FlashAttentionOptions {
  bool is_causal = false;
  std::optional<double> scale = {};   // none: 1/√head_dim
  double dropout = 0;                 // the share of weights that is dropped
  std::optional<Stream> stream = {};  // of the mask; none: the next one of default_generator()
};

Tensor flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       FlashAttentionOptions options = {});
Tensor flash_attention(const Tensor& qkv, FlashAttentionOptions options = {});

struct AttentionDropout {
  Stream stream = {};
  std::uint32_t threshold = 0;  // drawn below it, a weight is dropped; 0: none is
  double scale = 1;             // of those that are kept
};

// Head h at position i of sequence b begins at (b·length + i) · row + h · head_dim, with length_q
// for q and dq, length_k for k, v, dk and dv. In y and dy rows are heads · head_dim apart always.
struct FlashAttentionSize {
  std::int64_t batch, length_q, length_k, heads, head_dim;
  std::int64_t
      row;  // elements from one position to the next: heads · head_dim; packed, 3 times that
  bool is_causal;
  double scale;
  AttentionDropout dropout = {};
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
