// Internal: not in <ebb/ebb.h>, not installed.
// The JSON header of a safetensors file, read strictly: core/safetensors.h says what is refused.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ebb/core/shape.h"

namespace ebb::safetensors {

inline constexpr std::int64_t max_header = 100'000'000;
inline constexpr std::int64_t max_metadata = std::int64_t{16} << 20;
inline constexpr size_t max_tensors = 65'536;
inline constexpr size_t max_name = 255;
inline constexpr std::int64_t max_number = std::int64_t{1} << 48;
inline constexpr std::string_view version_key = "ebb.version";
inline constexpr std::string_view checksum_key = "ebb.crc32";
inline constexpr std::string_view metadata_key = "__metadata__";

// One tensor of the file.
struct Entry {
  std::string name;
  std::string dtype;  // as the format spells it: one that it knows
  Shape shape;
  std::int64_t begin = 0;  // bytes from the start of the data
  std::int64_t end = 0;
  std::int64_t at = 0;  // byte of the file where the name stands, for messages
};

struct Header {
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  std::int64_t checksum_at = -1;  // where in the header the checksum's value stands
};

// What is wrong with a tensor's name; null when nothing is.
const char* name_fault(std::string_view name);

// Bytes an element of a type of the format has; 0 for an unknown one.
std::int64_t element_bytes(std::string_view dtype);

// Errors `format`, `limit` unless `json` is a header and its tensors cover `data_bytes` bytes, each
// exactly once.
Header parse_header(const std::string& path, std::string_view json, std::int64_t data_bytes);

// The text in quotes, with what JSON wants escaped.
std::string quoted(std::string_view text);

}  // namespace ebb::safetensors
