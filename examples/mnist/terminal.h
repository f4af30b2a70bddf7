// A digit shown in the terminal.
#pragma once
#include <cstdint>
#include <string>

namespace mnist {

// Whether LC_ALL, LC_CTYPE or LANG (the first that is set) asks for UTF-8.
bool utf8_terminal();

// 28×28 bytes as 14 lines of 28 characters: half blocks, or plain ASCII shades without UTF-8.
std::string show(const std::uint8_t* pixels, bool utf8 = utf8_terminal());

}  // namespace mnist
