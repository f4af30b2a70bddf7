// Internal: not in <ebb/ebb.h>, not installed.
// CRC-32 (ISO 3309, as in gzip and PNG): finds every burst of up to 32 damaged bits.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace ebb {
namespace detail {

// tables[k][b]: byte b followed by k zero bytes.
constexpr std::array<std::array<std::uint32_t, 256>, 8> crc32_tables() {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t c = b;
    for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1 ? 0xEDB88320u : 0);
    tables[0][b] = c;
  }
  for (size_t k = 1; k < 8; ++k)
    for (size_t b = 0; b < 256; ++b)
      tables[k][b] = tables[k - 1][b] >> 8 ^ tables[0][tables[k - 1][b] & 0xFF];
  return tables;
}

}  // namespace detail

// Of what `crc` already covers followed by `bytes`; 0 covers nothing. Little-endian hosts, as the
// whole file format; eight bytes at a time (Kounavis and Berry 2005).
inline std::uint32_t crc32(std::uint32_t crc, std::span<const std::byte> bytes) {
  static constexpr auto t = detail::crc32_tables();
  crc = ~crc;
  while (bytes.size() >= 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, bytes.data(), 8);
    eight ^= crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= t[7 - k][eight >> 8 * k & 0xFF];
    bytes = bytes.subspan(8);
  }
  for (const std::byte b : bytes)
    crc = crc >> 8 ^ t[0][(crc ^ static_cast<std::uint32_t>(b)) & 0xFF];
  return ~crc;
}

}  // namespace ebb
