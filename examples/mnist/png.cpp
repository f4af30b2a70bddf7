#include "mnist/png.h"

#include <algorithm>
#include <array>
#include <string_view>

#include <zlib.h>

#include "common/file.h"
#include "ebb/core/error.h"

namespace mnist {

using ebb::Kind;
using ebb::require;
using ebb::text;
using example::quoted;

namespace {

constexpr std::array<std::uint8_t, 8> signature = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

std::uint32_t big_endian(const std::uint8_t* b) {
  return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
}

struct Chunk {
  std::string_view type;
  const std::uint8_t* data;
  std::size_t size;
};

// The chunk at `at`, its CRC checked; moves `at` behind it.
Chunk next_chunk(const std::vector<std::uint8_t>& bytes, std::size_t& at, const std::string& path) {
  const std::size_t left = bytes.size() - at;
  require(left >= 12 && big_endian(&bytes[at]) <= left - 12, Kind::format, "image",
          text(quoted(path), ": the PNG is cut short"), text(bytes.size(), " bytes"), "");
  const std::size_t size = big_endian(&bytes[at]);
  const std::uint8_t* type = &bytes[at + 4];
  const auto crc = static_cast<std::uint32_t>(crc32(0, type, static_cast<uInt>(size + 4)));
  const Chunk chunk{{reinterpret_cast<const char*>(type), 4}, type + 4, size};
  require(crc == big_endian(type + 4 + size), Kind::format, "image",
          text(quoted(path), ": a PNG chunk has a wrong CRC"),
          text("chunk ", chunk.type, " at byte ", at), "");
  at += size + 12;
  return chunk;
}

struct Header {
  std::int64_t width, height;
  int depth, color, interlace;
};

Header read_header(const Chunk& chunk, const std::string& path) {
  require(chunk.type == "IHDR" && chunk.size == 13, Kind::format, "image",
          text(quoted(path), ": a PNG must begin with its header"), text("chunk ", chunk.type),
          "IHDR of 13 bytes");
  const std::uint8_t* d = chunk.data;
  const Header header{big_endian(d), big_endian(d + 4), d[8], d[9], d[12]};
  require(header.width > 0 && header.height > 0, Kind::format, "image",
          text(quoted(path), " has no pixels"), text(header.width, "x", header.height), "");
  check_size(header.width, header.height, path);
  constexpr std::array<std::uint32_t, 7> depths = {0x10116, 0, 0x10100, 0x116, 0x10100, 0, 0x10100};
  const bool color = header.color <= 6 && header.depth <= 16;
  require(
      color && (depths[static_cast<std::size_t>(header.color)] >> header.depth & 1) &&
          header.interlace <= 1 && d[10] == 0 && d[11] == 0,
      Kind::format, "image", text(quoted(path), ": the PNG header makes no sense"),
      text("depth ", header.depth, ", color type ", header.color, ", interlace ", header.interlace),
      "");
  return header;
}

// How many bytes the pixels unpack to: each line has one more for its filter, and an interlaced
// picture is seven smaller ones.
std::int64_t unpacked_size(const Header& header) {
  constexpr std::array<int, 7> channels = {1, 0, 3, 1, 2, 0, 4};
  const std::int64_t bits = header.depth * channels[static_cast<std::size_t>(header.color)];
  const auto size = [&](std::int64_t w, std::int64_t h) {
    return w > 0 && h > 0 ? h * (1 + (w * bits + 7) / 8) : 0;
  };
  if (header.interlace == 0) return size(header.width, header.height);
  struct Pass {
    int x, y, step_x, step_y;
  };
  constexpr Pass adam7[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                            {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
  std::int64_t sum = 0;
  for (const Pass& p : adam7)
    sum += size((header.width - p.x + p.step_x - 1) / p.step_x,
                (header.height - p.y + p.step_y - 1) / p.step_y);
  return sum;
}

// Unpacks into a scratch buffer, only to see that the stream is sound and of the right length.
class Probe {
 public:
  explicit Probe(std::int64_t size) : left_(size) {
    require(inflateInit(&stream_) == Z_OK, Kind::oom, "image", "zlib cannot start", "", "");
  }
  ~Probe() { inflateEnd(&stream_); }
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  void feed(const Chunk& chunk, const std::string& path) {
    stream_.next_in = const_cast<std::uint8_t*>(chunk.data);  // zlib reads it only
    stream_.avail_in = static_cast<uInt>(chunk.size);
    bool full = true;  // the buffer was filled: more may be waiting
    while (!ended_ && (stream_.avail_in > 0 || full)) {
      stream_.next_out = scratch_.data();
      stream_.avail_out = static_cast<uInt>(scratch_.size());
      const int status = inflate(&stream_, Z_NO_FLUSH);
      ended_ = status == Z_STREAM_END;
      require(ended_ || status == Z_OK || status == Z_BUF_ERROR, Kind::format, "image",
              text(quoted(path), ": damaged PNG pixels"), stream_.msg ? stream_.msg : "", "");
      full = stream_.avail_out == 0;
      left_ -= static_cast<std::int64_t>(scratch_.size()) - stream_.avail_out;
      require(left_ >= 0, Kind::limit, "image",
              text(quoted(path), " unpacks to more than its header declares"), "", "");
    }
  }

  bool complete() const { return ended_ && left_ == 0; }

 private:
  z_stream stream_{};
  std::array<std::uint8_t, 1 << 15> scratch_;
  std::int64_t left_;
  bool ended_ = false;
};

}  // namespace

void check_size(std::int64_t width, std::int64_t height, const std::string& path) {
  require(width <= longest_side && height <= longest_side && width * height <= most_pixels,
          Kind::limit, "image", text(quoted(path), " is too large"), text(width, "x", height),
          text("at most ", longest_side, " a side, ", most_pixels, " pixels"));
}

bool is_png(const std::vector<std::uint8_t>& bytes) {
  return bytes.size() >= signature.size() &&
         std::equal(signature.begin(), signature.end(), bytes.begin());
}

void check_png(const std::vector<std::uint8_t>& bytes, const std::string& path) {
  std::size_t at = signature.size();
  const Header header = read_header(next_chunk(bytes, at, path), path);
  Probe pixels(unpacked_size(header));
  for (;;) {
    const Chunk chunk = next_chunk(bytes, at, path);
    if (chunk.type == "IEND") break;
    if (chunk.type == "IDAT") pixels.feed(chunk, path);
  }
  require(pixels.complete(), Kind::format, "image", text(quoted(path), ": PNG pixels are missing"),
          "", "");
}

void complete_palette(std::vector<std::uint8_t>& bytes) {
  constexpr std::size_t whole = 3 * 256;
  constexpr std::string_view name = "PLTE";
  for (std::size_t at = signature.size(); at + 12 <= bytes.size();) {
    const std::size_t size = big_endian(&bytes[at]);
    const bool found = std::equal(name.begin(), name.end(), &bytes[at + 4]);
    if (found && size < whole && size % 3 == 0) {
      const auto end = bytes.begin() + static_cast<std::ptrdiff_t>(at + 8 + size);
      bytes.insert(end, whole - size, 0);
      bytes[at + 2] = whole >> 8;
      bytes[at + 3] = whole & 255;  // the CRC, now wrong, has been looked at
    }
    if (found) return;
    at += size + 12;
  }
}

}  // namespace mnist
