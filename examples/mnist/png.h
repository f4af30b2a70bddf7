// What stb_image does not check of a PNG: that each chunk's CRC is right, that the file is whole,
// and that its packed pixels unpack to just the size its header declares.
// Source: PNG specification, third edition, W3C 2025 (chunks, scanlines, Adam7).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mnist {

inline constexpr int longest_side = 8192;
inline constexpr std::int64_t most_pixels = std::int64_t{64} << 20;

// Error `limit`, naming the path, for a picture larger than that.
void check_size(std::int64_t width, std::int64_t height, const std::string& path);

bool is_png(const std::vector<std::uint8_t>& bytes);

// Errors `format` and `limit`, naming the path; nothing is allocated by the sizes it declares.
// What follows the end chunk is not looked at (a PNG may carry a zip behind it).
void check_png(const std::vector<std::uint8_t>& bytes, const std::string& path);

// Fills a checked PNG's palette up with black to its 256 entries, as libpng does: stb_image shows
// memory that nobody has written for an index beyond the palette.
void complete_palette(std::vector<std::uint8_t>& bytes);

}  // namespace mnist
