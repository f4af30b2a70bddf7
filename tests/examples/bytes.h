// Files made byte by byte: idx, gzip and PNG, also such as no program would write.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <zlib.h>

namespace mnist::test {

using Bytes = std::vector<std::uint8_t>;

inline Bytes joined(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline Bytes bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
inline std::string text_of(const Bytes& bytes) { return {bytes.begin(), bytes.end()}; }

inline Bytes big_endian(std::uint32_t n) {
  Bytes out;
  for (const int shift : {24, 16, 8, 0}) out.push_back(static_cast<std::uint8_t>(n >> shift));
  return out;
}

inline Bytes idx(const std::vector<std::uint32_t>& shape, const Bytes& data,
                 std::uint8_t type = 8) {
  Bytes out = {0, 0, type, static_cast<std::uint8_t>(shape.size())};
  for (const std::uint32_t n : shape) out = joined(std::move(out), big_endian(n));
  return joined(std::move(out), data);
}

// zlib's format; `gzip`: that of files.
inline Bytes zipped(const Bytes& bytes, bool gzip = true) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 9, Z_DEFLATED, 15 + (gzip ? 16 : 0), 9, Z_DEFAULT_STRATEGY) ==
          Z_OK);
  Bytes out(deflateBound(&stream, bytes.size()) + 64);
  stream.next_in = const_cast<std::uint8_t*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

inline Bytes chunk(const std::string& type, const Bytes& data) {
  const Bytes body = joined(bytes_of(type), data);
  const auto crc = crc32(0, body.data(), static_cast<uInt>(body.size()));
  return joined(joined(big_endian(static_cast<std::uint32_t>(data.size())), body),
                big_endian(static_cast<std::uint32_t>(crc)));
}

struct Png {
  std::uint32_t width, height;
  std::uint8_t depth, color;
  Bytes lines;       // each with its filter byte
  Bytes extra = {};  // whole chunks between header and pixels
  std::uint8_t interlace = 0;

  Bytes bytes() const {
    const Bytes header =
        joined(joined(big_endian(width), big_endian(height)), {depth, color, 0, 0, interlace});
    Bytes out = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    for (const Bytes& part :
         {chunk("IHDR", header), extra, chunk("IDAT", zipped(lines, false)), chunk("IEND", {})})
      out = joined(std::move(out), part);
    return out;
  }
};

}  // namespace mnist::test
