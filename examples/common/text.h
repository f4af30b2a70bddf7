// Numbers and lists as text, and back.
#pragma once
#include <charconv>
#include <cstdint>
#include <string>
#include <vector>

namespace example {

// The whole of `text` as a number, in every locale and without leading blanks; false if it is none.
template <class T>
bool read_number(const std::string& text, T& number) {
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  return failed == std::errc{} && end == text.data() + text.size();
}

// The shortest text that reads back as the same number, in every locale.
std::string shown(std::int64_t value);
std::string shown(double value);

// As printf() would print it, up to 255 bytes.
[[gnu::format(printf, 1, 2)]] std::string formatted(const char* format, ...);

// "data, data/mnist"
std::string listed(const std::vector<std::string>& words);

}  // namespace example
