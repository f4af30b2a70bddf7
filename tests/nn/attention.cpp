#include "ebb/nn/attention.h"

#include "ebb/nn/transformer.h"
#include "ebb/ops/attention/flash_attention.h"
#include "ebb/ops/shape/reshape.h"
#include "state.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;
using nn::MultiHeadAttention;

TEST_CASE("attention: dropout is of the weights, and in training only") {
  for (const Device device : devices()) {
    manual_seed(1);
    MultiHeadAttention attention(12, 3, {.dropout = 0.4}), plain(12, 3);
    plain.load_state(attention.state());
    attention.to(device), plain.to(device);
    const Tensor x = randn({2, 20, 12}, 2, Dtype::f32, device);
    manual_seed(1);
    const auto dropped = values(attention(x));
    CHECK(default_generator().drawn() == 1);
    const Tensor qkv = reshape(attention.qkv(x), {2, 20, 3, 3, 4});
    const FlashAttentionOptions same{.is_causal = true, .dropout = 0.4, .stream = Stream{1, 0}};
    const Tensor y = attention.proj(reshape(flash_attention(qkv, same), {2, 20, 12}));
    CHECK(dropped == values(y));
    attention.eval();
    CHECK(values(attention(x)) == values(plain(x)));
    attention.train();
    CHECK(values(attention(x)) != values(plain(x)));
    CHECK(default_generator().drawn() == 2);
    nn::KeysValues seen;
    attention.eval();
    CHECK(values(attention.forward(x, seen)) == values(attention(x)));
    CHECK(default_generator().drawn() == 2);
  }
  for (const double p : {-0.1, 1.0})
    check_error(Kind::value, {"MultiHeadAttention: bad dropout", "[0, 1)"},
                [&] { MultiHeadAttention(4, 1, {.dropout = p}); });
}

TEST_CASE("attention: without a mask every position sees all, and a cache makes no sense") {
  MultiHeadAttention attention(8, 2, {.causal = false});
  const Tensor x = randn({1, 4, 8}, 11, Dtype::f32);
  for (const double w : values(attention.maps(x))) CHECK(w > 0);
  nn::KeysValues seen;
  check_error(Kind::value, {"MultiHeadAttention"}, [&] { attention.forward(x, seen); });
  check_error(Kind::value, {"heads must divide the width", "3 heads of 8"},
              [] { MultiHeadAttention(8, 3); });
  check_error(Kind::shape, {"MultiHeadAttention: x has the wrong rank"}, [&] {
    attention(zeros({4, 8}));
  });
}

TEST_CASE("attention: a transformer's dropout reaches it, under the names it had") {
  const nn::TransformerOptions options{
      .vocabulary = 5, .context = 6, .layers = 3, .heads = 2, .width = 8, .dropout = 0.5};
  nn::TransformerOptions none = options;
  none.dropout = 0;
  nn::Transformer model(options), plain(none);
  CHECK(names(model.state()) == names(plain.state()));
  const Tensor tokens = zeros({1, 6}, {Dtype::i32});
  manual_seed(2);
  model(tokens);
  // After the embeddings; in each layer of the weights and on both branches.
  CHECK(default_generator().drawn() == 1 + 3 * 3);
  model.eval();
  model(tokens);
  CHECK(default_generator().drawn() == 1 + 3 * 3);
}
