// Errors: one exception type, one way to raise it, one line of text.
//
//   require(x.rank() == 4, Kind::shape, "conv2d", "x must be [N,C,H,W]", x.shape(), "rank 4");
//
// raises an ebb::Error of kind shape: "conv2d: x must be [N,C,H,W]; got [3,28,28]; expected rank 4"
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

namespace ebb {

enum class Kind { shape, dtype, device, index, value, state, io, format, limit, oom, cuda };

std::string_view name(Kind kind);

class Error : public std::runtime_error {
 public:
  Error(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

// Several parts shown one after another. They are held by reference and formatted only when a
// check fails, so a passing require() costs one branch.
template <class... Parts>
struct Text {
  std::tuple<const Parts&...> parts;
};

template <class... Parts>
Text<Parts...> text(const Parts&... parts) {
  return {{parts...}};
}

template <class... Parts>
std::ostream& operator<<(std::ostream& out, const Text<Parts...>& text) {
  std::apply([&](const auto&... part) { (out << ... << part); }, text.parts);
  return out;
}

[[noreturn]] void raise(Kind kind, std::string_view op, const std::string& what,
                        const std::string& got, const std::string& expected);

template <class What, class Got, class Expected>
void require(bool ok, Kind kind, std::string_view op, const What& what, const Got& got,
             const Expected& expected) {
  if (ok) [[likely]]
    return;
  const auto shown = [](const auto& part) {
    std::ostringstream out;
    out << part;
    return out.str();
  };
  raise(kind, op, shown(what), shown(got), shown(expected));
}

}  // namespace ebb
