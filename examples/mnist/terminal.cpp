#include "mnist/terminal.h"

#include <string_view>

#include "mnist/data.h"

namespace mnist {

std::string show(const std::uint8_t* pixels, bool utf8) {
  constexpr std::string_view shades = " .:-=+*#%@";
  constexpr std::string_view blocks[2][2] = {{" ", "▄"}, {"▀", "█"}};
  std::string out;
  for (int y = 0; y < side; y += 2) {
    std::string line;
    for (int x = 0; x < side; ++x) {
      const int upper = pixels[y * side + x], lower = pixels[(y + 1) * side + x];
      if (utf8)
        line += blocks[upper >= 96][lower >= 96];
      else
        line += shades[static_cast<std::size_t>((upper + lower) * 9 + 255) / 510];
    }
    out += line.erase(line.find_last_not_of(' ') + 1) + '\n';
  }
  return out;
}

}  // namespace mnist
