// A decoder-only transformer: embeddings, pre-norm blocks of attention and feed-forward, a norm,
// and a head that says how likely each token is to come next.
//
//   nn::Transformer model(
//       {.vocabulary = 65, .context = 64, .layers = 4, .heads = 4, .width = 128});
//   Tensor logits = model(tokens);  // i32 [batch, length] → [batch, length, vocabulary]
//
// Initial values are GPT-2's: normal with deviation 0.02, the projections onto the residual stream
// with 0.02/√(2·layers), biases 0, norms 1. Weights have the names that Python users expect:
// tok.weight, pos.weight, blocks.0.norm1.weight, blocks.0.attention.{qkv,proj}.weight,
// blocks.0.norm2.weight, blocks.0.feed_forward.{up,gate,down}.weight, norm.weight, and head.weight
// unless the head is tied to tok.weight, which is then stored once.
//
// Errors: `value` for sizes below 1, heads that do not divide the width, a bad dropout; `index` for
// a sequence longer than the context and for a token outside the vocabulary.
// Sources: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019 (GPT-2); Touvron et al. 2023,
// arXiv:2302.13971 (LLaMA: rms norm, rotary, swiglu).
#pragma once
#include <optional>

#include "ebb/nn/attention.h"
#include "ebb/ops/linalg/linear.h"
#include "ebb/ops/reduction/linear_cross_entropy.h"

namespace ebb::nn {

enum class Positions { learned, rotary };
enum class FeedForwardKind { gelu, swiglu };
enum class Norm { layer, rms };

struct TransformerOptions {
  std::int64_t vocabulary = 0, context = 0, layers = 0, heads = 0, width = 0;
  double dropout = 0;  // of the embeddings, attention's weights and projection, the feed-forward
  Positions positions = Positions::learned;
  FeedForwardKind feed_forward = FeedForwardKind::gelu;
  Norm norm = Norm::layer;
  bool bias = false;         // of Linear and LayerNorm
  bool tied_head = true;     // logits = h · tok.weightᵀ
  bool recompute = false;    // blocks keep only their input, and run again in backward
  bool check_tokens = true;  // on the GPU that waits for the device; see ops/shape/embedding.h
};

// gelu(x · Upᵀ) · Downᵀ, four times as wide inside; or, with three matrices for the same size,
// swiglu(x · Gateᵀ, x · Upᵀ) · Downᵀ, 8/3 times as wide, rounded up to a multiple of 8.
class FeedForward : public Module {
 public:
  FeedForward(std::int64_t width, FeedForwardKind kind, bool with_bias);
  Tensor forward(const Tensor& x) override { return onto({}, x); }
  Tensor onto(const Tensor& residual, const Tensor& x);  // residual + forward(x)
  void parts(Parts& p) override;
  Linear up, down;
  std::optional<Linear> gate;  // of swiglu
};

// x ← x + attention(norm1(x)), x ← x + feed_forward(norm2(x)); where nothing is dropped, the last
// product of each adds x.
class TransformerBlock : public Module {
 public:
  explicit TransformerBlock(const TransformerOptions& options);
  Tensor forward(const Tensor& x) override;
  Tensor forward(const Tensor& x, KeysValues& seen);
  Tensor maps(const Tensor& x);  // of its attention
  void parts(Parts& p) override;
  std::shared_ptr<Module> norm1, norm2;
  MultiHeadAttention attention;
  FeedForward feed_forward;
  Dropout dropout;

 private:
  template <class Part>
  Tensor added(const Tensor& x, Part& part, const Tensor& normed);
};

class Transformer : public Module {
 public:
  explicit Transformer(const TransformerOptions& options);
  Tensor forward(const Tensor& tokens) override;

  // cross_entropy of the logits, whose rows are those of targets [batch, length], holding no more
  // than options.logits_at_a_time of them.
  Tensor loss(const Tensor& tokens, const Tensor& targets,
              const LinearCrossEntropyOptions& options = {});

  // What each head of the last layer looks at, [batch, heads, length, length].
  Tensor attention_maps(const Tensor& tokens);

  // Generation, a step at a time: the logits after the last token, [batch, vocabulary], given
  // tokens [batch, n] that follow those in the cache: a whole prompt first, then one by one.
  // What forward() says of all of them, up to rounding. Not recorded; call eval() first. Error
  // `index` beyond the context.
  using Cache = std::vector<KeysValues>;  // one a layer; {} at first
  Tensor next_logits(const Tensor& tokens, Cache& cache);

  const TransformerOptions& options() const { return options_; }
  void parts(Parts& p) override;
  Embedding tok;
  std::optional<Embedding> pos;  // unless rotary
  std::vector<TransformerBlock> blocks;
  std::shared_ptr<Module> norm;
  std::optional<Linear> head;  // unless tied

 private:
  Tensor embedded(const Tensor& tokens, std::int64_t first);
  Tensor hidden(const Tensor& tokens);  // what the head sees
  Tensor logits(const Tensor& x) { return linear(x, head_weight()); }
  const Tensor& head_weight() const { return head ? head->weight : tok.weight; }
  TransformerOptions options_;
  Dropout dropout_;
};

}  // namespace ebb::nn
