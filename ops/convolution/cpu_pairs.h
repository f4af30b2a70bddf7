// Internal: not in <ebb/ebb.h>, not installed.
// The CPU's convolution of bf16 where a processor multiplies pairs of them: one instruction is
//
//   sum + a₀·b₀ + a₁·b₁     in f32, of exact products
//
// for as many pairs as a register has f32. So a pair of channels, or of images where these are
// summed over, goes as one "f32" through packing, staging and tiles, at half the work.
#pragma once
#include <cstdint>

#include "ebb/core/eigen.h"
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::cpu {

#ifdef __AVX512BF16__
inline constexpr bool multiplies_pairs = true;

inline __m512 add_pairs(__m512 a, __m512 b, __m512 sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
inline __m256 add_pairs(__m256 a, __m256 b, __m256 sum) {
  return _mm256_dpbf16_ps(sum, (__m256bh)a, (__m256bh)b);
}
inline __m128 add_pairs(__m128 a, __m128 b, __m128 sum) {
  return _mm_dpbf16_ps(sum, (__m128bh)a, (__m128bh)b);
}
inline float add_pairs(float a, float b, float sum) {
  return _mm_cvtss_f32(add_pairs(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(sum)));
}
#else
inline constexpr bool multiplies_pairs = false;
#endif

// sum + a · b, of numbers or of pairs.
template <bool pairs, class P>
P add_product(const P& a, const P& b, const P& sum) {
#ifdef __AVX512BF16__
  if constexpr (pairs) return add_pairs(a, b, sum);
#endif
  return Eigen::internal::pmadd(a, b, sum);
}

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
  Tensor x;         // f32 by its type
  int least = 512;  // exponent, as bf16 has it, of the smallest number that is not 0
};

// x [outer][channels][inner] → [outer][⌈channels / 2⌉][inner], 0 beside the last of an odd number.
Pairs pairs_of(const Tensor& x, std::int64_t outer, std::int64_t channels, std::int64_t inner);

// A single image [1][channels][height][width] as two, which make pairs: of so many rows each, the
// first from `above` rows above the image on, the second `shift` rows below that.
struct Half {
  std::int64_t rows, shift, above = 0;
};
Pairs halves_of(const Tensor& x, const Half& half);

// Whether no product and no sum of products is a denormal, which the instruction takes for 0.
bool exact(const Pairs& a, const Pairs& b);

}  // namespace ebb::cpu
