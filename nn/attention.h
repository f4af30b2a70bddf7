// Self-attention: every position's query meets the keys of the positions it may see.
//
//   q, k, v = x · Wqkvᵀ      y = softmax(q kᵀ / √head_dim) v, heads side by side, · Wprojᵀ
//
// One product makes queries, keys and values side by side, [batch, length, 3, heads, head_dim],
// which flash_attention takes as they lie: nothing is copied.
// Errors: `value` unless heads divide the width (and leave an even head_dim with rotary), and for a
// bad dropout.
#pragma once
#include "ebb/nn/layers.h"
#include "ebb/ops/attention/rotary.h"

namespace ebb::nn {

struct MultiHeadAttentionOptions {
  bool causal = true;   // each position sees itself and what is before it
  bool rotary = false;  // queries and keys are turned by their positions
  bool bias = true;
  double dropout = 0;  // the share of attention's weights that training drops
};

// Keys and values of the positions seen so far, [batch, positions, heads, head_dim]; undefined
// before the first.
struct KeysValues {
  Tensor keys, values;
  std::int64_t positions() const { return keys.defined() ? keys.size(1) : 0; }
};

class MultiHeadAttention : public Module {
 public:
  MultiHeadAttention(std::int64_t width, std::int64_t heads,
                     MultiHeadAttentionOptions options = {});
  Tensor forward(const Tensor& x) override;              // [batch, length, width] → same
  Tensor onto(const Tensor& residual, const Tensor& x);  // residual + forward(x)

  // The positions of x follow those in `seen`, which they join. Causal only: several positions at
  // once when nothing has been seen, else one at a time (error `value`).
  Tensor forward(const Tensor& x, KeysValues& seen);

  // softmax(q kᵀ / √head_dim), [batch, heads, length, length]: for pictures, not recorded.
  Tensor maps(const Tensor& x);

  void parts(Parts& p) override { p("qkv", qkv), p("proj", proj); }
  Linear qkv, proj;

 private:
  Tensor packed(const Tensor& x, std::int64_t first);  // [batch, length, 3, heads, head_dim]
  Tensor attended(const Tensor& x);                    // heads side by side
  double dropout() const { return training() ? options_.dropout : 0; }
  std::int64_t heads_;
  MultiHeadAttentionOptions options_;
};

}  // namespace ebb::nn
