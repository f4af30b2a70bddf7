// Internal: not in <ebb/ebb.h>, not installed.
// Text from outside (names in files, paths) is checked before it is kept or shown.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace ebb {

struct CodePoint {
  std::uint32_t value;
  int bytes;  // 0: not UTF-8 here
};

// The first character of a text that is not empty: shortest forms only, no surrogates.
constexpr CodePoint first_code_point(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const int length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (lead < 0xC2 || lead > 0xF4 || text.size() < static_cast<size_t>(length)) return {0, 0};
  std::uint32_t value = lead & (0x7Fu >> length);
  for (int i = 1; i < length; ++i) {
    const std::uint32_t next = byte(static_cast<size_t>(i));
    if ((next & 0xC0u) != 0x80u) return {0, 0};
    value = value << 6 | (next & 0x3Fu);
  }
  const bool surrogate = 0xD800 <= value && value <= 0xDFFF;
  if (value < smallest[length] || value > 0x10FFFF || surrogate) return {0, 0};
  return {value, length};
}

// Whether a character may stand in a name or message: none that moves the cursor, hides, or turns
// the direction of writing.
constexpr bool is_printable(std::uint32_t c) {
  const auto in = [c](std::uint32_t first, std::uint32_t last) { return first <= c && c <= last; };
  return !(c < 0x20 || in(0x7F, 0x9F) || in(0x200B, 0x200F) || in(0x2028, 0x202E) ||
           in(0x2060, 0x206F) || c == 0xFEFF || in(0xFFF9, 0xFFFF));
}

// Appends a character that is no surrogate.
inline void append_utf8(std::string& text, std::uint32_t c) {
  const auto put = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
  const auto more = [&](int shift) { put(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) return put(0xC0 | c >> 6), more(0);
  if (c < 0x10000) return put(0xE0 | c >> 12), more(6), more(0);
  put(0xF0 | c >> 18), more(12), more(6), more(0);
}

}  // namespace ebb
