// Division without dividing, for kernels that find their place in a tensor.
#pragma once
#include <cstdint>

namespace ebb::gpu {

// n / d for 0 <= n < 2⁶³, or 2³¹ in words of 32 bits, by a multiplication and a shift; those take a
// fifth of the instructions.
// Source: Granlund and Montgomery 1994, "Division by invariant integers using multiplication".
template <class Word>
struct WordDivider {
  static constexpr int bits = 8 * sizeof(Word);
  Word d = 1;
  Word factor = 1;
  int shift = 0;

  WordDivider() = default;
  explicit WordDivider(std::int64_t divisor) : d(static_cast<Word>(divisor)) {
    while ((std::uint64_t{1} << shift) < d) ++shift;
    const auto excess = static_cast<unsigned __int128>((std::uint64_t{1} << shift) - d);
    factor = static_cast<Word>((excess << bits) / d) + 1;
  }
  __device__ Word quotient(Word n) const {
    if constexpr (bits == 32) return (__umulhi(n, factor) + n) >> shift;
    return (__umul64hi(n, factor) + n) >> shift;
  }
  __device__ Word remainder(Word n) const { return n - quotient(n) * d; }
};
using Divider = WordDivider<std::uint64_t>;

}  // namespace ebb::gpu
