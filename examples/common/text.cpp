#include "common/text.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace example {
namespace {

template <class T>
std::string shortest(T value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

}  // namespace

std::string shown(std::int64_t value) { return shortest(value); }
std::string shown(double value) { return shortest(std::isnan(value) ? std::abs(value) : value); }

std::string formatted(const char* format, ...) {
  char line[256];
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof line, format, values);
  va_end(values);
  return line;
}

std::string listed(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

}  // namespace example
