#include "ebb/core/error.h"

#include <algorithm>
#include <array>

#include "ebb/core/utf8.h"

namespace ebb {

std::string_view name(Kind kind) {
  constexpr std::array<std::string_view, 11> names = {"shape", "dtype", "device", "index",
                                                      "value", "state", "io",     "format",
                                                      "limit", "oom",   "cuda"};
  return names[static_cast<size_t>(kind)];
}

namespace {

// Messages quote file names and tensor names from outside: keep them on one line and printable.
std::string printable(std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  std::string out;
  while (!text.empty()) {
    const CodePoint point = first_code_point(text);
    const auto bytes = static_cast<size_t>(std::max(point.bytes, 1));
    const bool shown = point.bytes > 0 && is_printable(point.value);
    for (const char c : text.substr(0, bytes)) {
      const auto byte = static_cast<unsigned char>(c);
      if (shown) {
        out += c;
      } else {
        out.append("\\x").append({hex[byte >> 4], hex[byte & 15]});
      }
    }
    text.remove_prefix(bytes);
  }
  return out;
}

}  // namespace

void raise(Kind kind, std::string_view op, const std::string& what, const std::string& got,
           const std::string& expected) {
  std::string message(op);
  message += ": " + what;
  if (!got.empty()) message += "; got " + got;
  if (!expected.empty()) message += "; expected " + expected;
  throw Error(kind, printable(message));
}

}  // namespace ebb
