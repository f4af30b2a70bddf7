#include "ebb/nn/transformer.h"

#include <cmath>

#include "ebb/core/autograd.h"
#include "ebb/core/error.h"
#include "ebb/core/recompute.h"
#include "ebb/nn/init.h"
#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/elementwise/swiglu.h"
#include "ebb/ops/linalg/feed_forward.h"
#include "ebb/ops/shape/reshape.h"
#include "ebb/ops/shape/slice.h"

namespace ebb::nn {
namespace {

constexpr const char* name = "Transformer";

std::int64_t hidden(std::int64_t width, FeedForwardKind kind) {
  if (kind == FeedForwardKind::gelu) return 4 * width;
  constexpr std::int64_t multiple = 8;
  return (8 * width + 3 * multiple - 1) / (3 * multiple) * multiple;
}

std::shared_ptr<Module> make_norm(const TransformerOptions& o) {
  if (o.norm == Norm::rms) return std::make_shared<RMSNorm>(o.width);
  return std::make_shared<LayerNorm>(o.width, 1e-5, o.bias);
}

const TransformerOptions& checked(const TransformerOptions& o) {
  const auto positive = [](const char* what, std::int64_t n) {
    require(n >= 1, Kind::value, name, text("bad ", what), n, "1 or more");
  };
  positive("vocabulary", o.vocabulary);
  positive("context", o.context);
  positive("layers", o.layers);
  positive("heads", o.heads);
  positive("width", o.width);
  require(o.width % o.heads == 0, Kind::value, name, "heads must divide the width",
          text(o.heads, " heads of ", o.width), "a divisor");
  require(0 <= o.dropout && o.dropout < 1, Kind::value, name, "bad dropout", o.dropout, "[0, 1)");
  return o;
}

}  // namespace

FeedForward::FeedForward(std::int64_t width, FeedForwardKind kind, bool with_bias)
    : up(width, hidden(width, kind), with_bias), down(hidden(width, kind), width, with_bias) {
  if (kind == FeedForwardKind::swiglu) gate.emplace(width, hidden(width, kind), with_bias);
}

Tensor FeedForward::onto(const Tensor& residual, const Tensor& x) {
  if (gate) return down.onto(residual, swiglu((*gate)(x), up(x)));
  return feed_forward(x, up.weight, down.weight, {up.bias, down.bias, residual});
}

void FeedForward::parts(Parts& p) {
  p("up", up);
  if (gate) p("gate", *gate);
  p("down", down);
}

TransformerBlock::TransformerBlock(const TransformerOptions& o)
    : norm1(make_norm(o)),
      norm2(make_norm(o)),
      attention(o.width, o.heads,
                {.rotary = o.positions == Positions::rotary, .bias = o.bias, .dropout = o.dropout}),
      feed_forward(o.width, o.feed_forward, o.bias),
      dropout(o.dropout) {}

template <class Part>
Tensor TransformerBlock::added(const Tensor& x, Part& part, const Tensor& normed) {
  return dropout.active() ? x + dropout(part(normed)) : part.onto(x, normed);
}

Tensor TransformerBlock::forward(const Tensor& x) {
  const Tensor h = added(x, attention, (*norm1)(x));
  return added(h, feed_forward, (*norm2)(h));
}

Tensor TransformerBlock::forward(const Tensor& x, KeysValues& seen) {
  const Tensor h = x + dropout(attention.forward((*norm1)(x), seen));
  return added(h, feed_forward, (*norm2)(h));
}

Tensor TransformerBlock::maps(const Tensor& x) { return attention.maps((*norm1)(x)); }

void TransformerBlock::parts(Parts& p) {
  p("norm1", *norm1);
  p("attention", attention);
  p("norm2", *norm2);
  p("feed_forward", feed_forward);
  p("dropout", dropout);
}

Transformer::Transformer(const TransformerOptions& o)
    : tok(checked(o).vocabulary, o.width, {.check_indices = o.check_tokens}),
      norm(make_norm(o)),
      options_(o),
      dropout_(o.dropout) {
  if (o.positions == Positions::learned) pos.emplace(o.context, o.width);
  for (std::int64_t i = 0; i < o.layers; ++i) blocks.emplace_back(o);
  if (!o.tied_head) head.emplace(o.width, o.vocabulary, false);
  constexpr double deviation = 0.02;
  const double onto_residual = deviation / std::sqrt(2.0 * static_cast<double>(o.layers));
  const NoGrad guard;
  for (auto& [path, w] : named_parameters()) {
    const bool last = path.ends_with("proj.weight") || path.ends_with("down.weight");
    if (w.rank() == 2) init::normal(w, 0, last ? onto_residual : deviation);
    if (path.ends_with(".bias")) w.fill_(0);
  }
}

Tensor Transformer::embedded(const Tensor& tokens, std::int64_t first) {
  require(tokens.rank() == 2, Kind::shape, name, "tokens have the wrong rank", tokens.shape(),
          "[batch,length]");
  const std::int64_t end = first + tokens.size(1);
  require(end <= options_.context, Kind::index, name, "sequence longer than the context", end,
          text("at most ", options_.context));
  const Tensor x = tok(tokens);
  return dropout_(pos ? x + slice(pos->weight, 0, first, end) : x);
}

Tensor Transformer::hidden(const Tensor& tokens) {
  Tensor x = embedded(tokens, 0);
  for (TransformerBlock& block : blocks) {
    if (options_.recompute)
      x = recompute([block](const Tensor& in) mutable { return block(in); }, x);
    else
      x = block(x);
  }
  return (*norm)(x);
}

Tensor Transformer::forward(const Tensor& tokens) { return logits(hidden(tokens)); }

Tensor Transformer::loss(const Tensor& tokens, const Tensor& targets,
                         const LinearCrossEntropyOptions& options) {
  const auto flat = [&] { return reshape(hidden(tokens), {-1, options_.width}); };
  return linear_cross_entropy(flat(), head_weight(), flatten(targets), options);
}

Tensor Transformer::attention_maps(const Tensor& tokens) {
  const NoGrad guard;
  Tensor x = embedded(tokens, 0);
  for (size_t i = 0; i + 1 < blocks.size(); ++i) x = blocks[i](x);
  return blocks.back().maps(x);
}

Tensor Transformer::next_logits(const Tensor& tokens, Cache& cache) {
  const NoGrad guard;
  if (cache.empty()) cache.resize(blocks.size());
  require(cache.size() == blocks.size(), Kind::value, name, "the cache of another model",
          text(cache.size(), " layers"), text(blocks.size(), " layers"));
  Tensor x = embedded(tokens, cache.front().positions());
  for (size_t i = 0; i < blocks.size(); ++i) x = blocks[i].forward(x, cache[i]);
  const Tensor last = slice(x, 1, tokens.size(1) - 1);
  return reshape(logits((*norm)(last)), {tokens.size(0), options_.vocabulary});
}

void Transformer::parts(Parts& p) {
  p("tok", tok);
  if (pos) p("pos", *pos);
  for (size_t i = 0; i < blocks.size(); ++i) p("blocks." + std::to_string(i), blocks[i]);
  p("norm", *norm);
  if (head) p("head", *head);
  p("dropout", dropout_);
}

}  // namespace ebb::nn
