// What the tests of conv2d share.
#pragma once
#include "twins.h"

namespace ebb::test {

struct Conv2dCase {
  Shape x, w;
  Conv2dOptions options;
};

// Products of standard normal numbers summed over `terms`: class E allows 16·2⁻²⁴·Σ|aᵢbᵢ|, and
// Σ|aᵢbᵢ| is about 0.64 · terms; half of it, for the smallest sums.
inline TwinTolerance sums(std::int64_t value_terms, std::int64_t gradient_terms) {
  constexpr double each = long_sum * 0.32;
  const auto bound = [](std::int64_t n) { return 1e-7 + each * static_cast<double>(n); };
  return {{bound(value_terms), 0}, {bound(gradient_terms), 0}};
}

}  // namespace ebb::test
