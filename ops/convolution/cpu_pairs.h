// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's convolution of bf16 where a processor multiplies pairs of them: a pair of channels, or
// of images where these are summed over, goes as one "f32" through packing, staging and tiles, at
// half the work.
#pragma once
#include "ebb/ops/convolution/conv2d.h"
#include "ebb/ops/pairs.h"

namespace ebb::cpu {

// f<T, pairs>() for tensors of numbers, or of pairs that lie in f32.
template <class F>
void visit_numbers(Dtype dtype, bool pairs, F&& f) {
  if constexpr (multiplies_pairs)
    if (pairs) return f.template operator()<float, true>();
  visit<float, double>(dtype, "conv2d",
                       [&](auto zero) { f.template operator()<decltype(zero), false>(); });
}

// A tensor of bf16 in pairs.
struct Pairs {
  Tensor x;  // f32 by its type
  int least_exponent = 0;
};

// x [outer][channels][inner] → [outer][⌈channels / 2⌉][inner], 0 beside the last of an odd number.
Pairs pairs_of(const Tensor& x, std::int64_t outer, std::int64_t channels, std::int64_t inner);

// A single image [1][channels][height][width] as two, which make pairs: of so many rows each, the
// first from `above` rows above the image on, the second `shift` rows below that.
struct Half {
  std::int64_t rows, shift, above = 0;
};
Pairs halves_of(const Tensor& x, const Half& half);

}  // namespace ebb::cpu
