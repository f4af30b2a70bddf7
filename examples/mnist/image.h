// A picture from outside, and the way from a picture of a digit to MNIST's 28×28.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "mnist/frame.h"

namespace mnist {

struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;  // [3, height, width]
};

// Reads a PNG or a JPEG; which of them is seen from its content, not its name. 16 bits a channel
// become 8, transparent parts are laid over white.
//   io      no such file, not a regular file, not readable, changed while read
//   format  anything but a sound PNG or JPEG (other formats are named)
//   limit   over 64 MiB of file, 8,192 pixels a side or 64 Mi pixels, all seen before decoding
Image read_image(const std::string& path);

// Whether the picture is of dark ink on a light ground. The ground's brightness is a plane laid
// through the border, so that a light falling from one side does not mislead; ink is then what
// stands out from it most strongly.
bool dark_on_light(const Gray& picture);

// Light ink on a dark ground, values 0 … 1 → 28×28 as MNIST has them, 0 … 1. What varies slowly
// (the light, a shadow) is taken away, specks smaller than a twentieth of the largest piece of ink
// are left out. Error `value` where there is no ink to be seen, or where a value is not within 0
// … 1.
std::array<float, area> find_digit(const Gray& picture);

}  // namespace mnist
