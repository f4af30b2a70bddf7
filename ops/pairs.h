// Internal: not in <ebb/ebb.h>, not installed.
// Pairs of bf16, which some processors multiply on the CPU: one instruction is
//
//   sum + a₀·b₀ + a₁·b₁     in f32, of exact products
//
// for as many pairs as a register has f32. It takes denormals, of operands and of results, for 0.
#pragma once
#include <algorithm>
#include <cstdint>

#include "ebb/core/eigen.h"

namespace ebb::cpu {

#ifdef __AVX512BF16__
inline constexpr bool multiplies_pairs = lanes<float> == 16;

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

// Exponent, as bf16 has it, of the smallest of n numbers that is not 0: 0 of denormals.
inline int least_exponent(const bf16* x, std::int64_t n) {
  std::uint16_t least = 0xffff;  // magnitude, less one: of 0 it is the largest
  for (std::int64_t i = 0; i < n; ++i)
    least = std::min(least, static_cast<std::uint16_t>((x[i].bits & 0x7fffu) - 1u));
  return (least + 1) >> 7;
}

// Whether no factor, product or sum of products is a denormal, for the least exponents of both
// factors: every sum is a multiple of the last bit of the smallest product.
inline bool no_denormals(int a, int b) {
  constexpr int bias = 127, bits = 7;
  return std::min(a, b) > 0 && a + b - 2 * (bias + bits) >= 1 - bias;
}

}  // namespace ebb::cpu
