// Generation: one token after another, each drawn from what the model says comes next.
#pragma once
#include <functional>
#include <vector>

#include "ebb/nn/transformer.h"
#include "transformer/vocabulary.h"

namespace transformer {

struct Sampling {
  double temperature = 0.8;  // 0: always the likeliest
  std::int64_t top_k = 0;    // only among that many; 0: all
  std::uint64_t seed = 0;
  std::int64_t known = 0;  // tokens that have a character; a model may have room for more
};

// Token number `place` of a text with that seed.
std::int32_t choose(const std::vector<float>& logits, const Sampling& sampling,
                    std::uint64_t place);

// `count` tokens after a prompt of 1 to context tokens (error `value`), each told as soon as it is
// known. When the context is full, its later half is read anew and it goes on from there.
void generate(ebb::nn::Transformer& model, const Tokens& prompt, std::int64_t count,
              const Sampling& sampling, const std::function<void(std::int32_t)>& tell);

}  // namespace transformer
