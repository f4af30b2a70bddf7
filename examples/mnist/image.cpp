#include "mnist/image.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string_view>

#include "common/file.h"
#include "ebb/core/error.h"
#include "mnist/png.h"

// Only what is needed of stb_image, and none of it visible to other files: nearly all its known
// faults are in the formats left out here.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS mnist::longest_side
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#if __has_include(<stb/stb_image.h>)
#include <stb/stb_image.h>
#else
#include <stb_image.h>
#endif
#pragma GCC diagnostic pop

namespace mnist {

using ebb::Kind;
using ebb::require;
using ebb::text;
using example::quoted;

namespace {

constexpr std::int64_t largest_file = std::int64_t{64} << 20;

std::string_view format_of(const std::vector<std::uint8_t>& bytes) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min<std::size_t>(bytes.size(), 16));
  if (start.empty()) return "an empty file";
  if (is_png(bytes)) return "PNG";
  if (start.starts_with("\xff\xd8\xff")) return "JPEG";
  if (start.starts_with("GIF8")) return "GIF";
  if (start.starts_with("BM")) return "BMP";
  if (start.starts_with("8BPS")) return "PSD";
  if (start.starts_with("#?")) return "HDR";
  if (start.starts_with("\x53\x80\xf6\x34")) return "PIC";
  if (start.starts_with("RIFF")) return "WebP";
  if (start.starts_with("II*") || start.starts_with("MM")) return "TIFF";
  if (start.size() > 1 && start[0] == 'P' && start[1] >= '1' && start[1] <= '7') return "PNM";
  return "something else";
}

// The size that a JPEG's frame header declares; stb_image would call it an unknown format if it is
// too large. Any other fault is left for stb_image to find.
void check_jpeg_size(const std::vector<std::uint8_t>& bytes, const std::string& path) {
  std::size_t at = 2;
  while (at + 9 <= bytes.size() && bytes[at] == 0xff) {
    const int marker = bytes[at + 1];
    if (marker == 0xff) {  // padding
      ++at;
      continue;
    }
    if (marker >= 0xc0 && marker <= 0xc2)
      return check_size(bytes[at + 7] << 8 | bytes[at + 8], bytes[at + 5] << 8 | bytes[at + 6],
                        path);
    at += 2u + static_cast<std::size_t>(bytes[at + 2] << 8 | bytes[at + 3]);
  }
}

// A progressive JPEG may paint its whole area again with every few bytes. No camera or program
// needs more than a few dozen scans.
void check_jpeg(const std::vector<std::uint8_t>& bytes, const std::string& path) {
  check_jpeg_size(bytes, path);
  constexpr int most_scans = 200;
  int scans = 0;
  for (std::size_t i = 0; i + 1 < bytes.size(); ++i)
    scans += bytes[i] == 0xff && bytes[i + 1] == 0xda;
  require(scans <= most_scans, Kind::limit, "image", text(quoted(path), " has too many scans"),
          scans, text("at most ", most_scans));
}

// RGBA, pixel by pixel → RGB, plane by plane.
std::vector<std::uint8_t> laid_over_white(const stbi_uc* rgba, std::size_t plane) {
  std::vector<std::uint8_t> rgb(3 * plane);
  for (std::size_t i = 0; i < plane; ++i) {
    const int alpha = rgba[4 * i + 3];
    for (std::size_t c = 0; c < 3; ++c)
      rgb[c * plane + i] =
          static_cast<std::uint8_t>((rgba[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  return rgb;
}

}  // namespace

Image read_image(const std::string& path) {
  auto bytes = example::read_file<std::vector<std::uint8_t>>("image", path, largest_file);
  const std::string_view format = format_of(bytes);
  require(format == "PNG" || format == "JPEG", Kind::format, "image",
          text(quoted(path), " is not supported"), format, "a PNG or a JPEG");
  if (format == "PNG") {
    check_png(bytes, path);
    complete_palette(bytes);
  } else {
    check_jpeg(bytes, path);
  }

  const auto failure = [] {
    const char* reason = stbi_failure_reason();
    return std::string(reason ? reason : "no reason given");
  };
  const auto size = static_cast<int>(bytes.size());
  int width = 0, height = 0, channels = 0;
  const bool known = stbi_info_from_memory(bytes.data(), size, &width, &height, &channels) != 0;
  require(known && width > 0 && height > 0, Kind::format, "image",
          text(quoted(path), ": damaged ", format), failure(), "");
  check_size(width, height, path);
  int loaded_width = 0, loaded_height = 0, loaded_channels = 0;
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(bytes.data(), size, &loaded_width, &loaded_height, &loaded_channels, 4),
      stbi_image_free);
  require(pixels != nullptr || failure() != "outofmem", Kind::oom, "image",
          text("no memory for ", quoted(path)), text(width, "x", height), "a smaller picture");
  require(pixels != nullptr, Kind::format, "image", text(quoted(path), ": damaged ", format),
          failure(), "");
  require(loaded_width == width && loaded_height == height && loaded_channels == channels,
          Kind::format, "image", text(quoted(path), ": header and pixels disagree"),
          text(loaded_width, "x", loaded_height), text(width, "x", height));

  const std::size_t plane = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  return {width, height, laid_over_white(pixels.get(), plane)};
}

}  // namespace mnist
