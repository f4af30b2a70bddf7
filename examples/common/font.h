// A bitmap font for plots: 5 × 7 points a letter, what figures and captions need.
#pragma once
#include <array>
#include <cstdint>

namespace example {

inline constexpr int glyph_width = 5;
inline constexpr int glyph_height = 9;  // two rows below the line for g j p q y

// Rows from the top, the leftmost point in bit 4. Capitals become small; unknown characters are
// empty.
using Glyph = std::array<std::uint8_t, glyph_height>;
Glyph glyph(char character);

}  // namespace example
