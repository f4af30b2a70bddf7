// A digit shown in the terminal.
#pragma once
#include <cstdint>
#include <string>

#include "common/progress.h"

namespace mnist {

// 28×28 bytes as 14 lines of 28 characters: half blocks, or plain ASCII shades without UTF-8.
std::string show(const std::uint8_t* pixels, bool utf8 = example::unicode_locale());

}  // namespace mnist
