// Checkpoints in the safetensors format: tensors and strings, nothing executable, readable by
// Python's `safetensors` package.
//
//   save_safetensors("w.safetensors", {{{"fc.weight", w}, {"fc.bias", b}}, {{"step", "100"}}});
//   const Checkpoint c = load_safetensors("w.safetensors");
//
// The file: 8 bytes N, little-endian; N bytes of JSON, name → {dtype, shape, data_offsets}; data.
// Files of ours also carry a format version and a CRC-32 of header and data among the metadata, as
// "ebb.version" and "ebb.crc32": no damaged bit goes unnoticed. Files without them load too.
// Source: https://github.com/huggingface/safetensors (README.md, docs/safetensors.schema.json).
#pragma once
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ebb/core/tensor.h"

namespace ebb {

struct Checkpoint {
  std::vector<std::pair<std::string, Tensor>> tensors;  // in the header's order; names are unique
  std::map<std::string, std::string> metadata;          // without "ebb.": those are the format's

  const Tensor* find(std::string_view name) const;  // null when absent
};

// Whole or not at all: written to path + ".tmp", brought to the disk, renamed. On error the old
// file is as it was and no temporary stays. The same checkpoint gives the same bytes. Tensors may
// be on any device. Errors: `value` for a name that is empty, over 255 bytes, not printable UTF-8,
// used twice or reserved; `state` for an undefined tensor; `limit` above 65,536 tensors or 16 MiB
// of metadata; `io`, naming the path and the reason.
void save_safetensors(const std::string& path, const Checkpoint& checkpoint);

struct LoadOptions {
  // ebb has no i64. Such tensors are refused (error `dtype`), or become i32 when this is set; then
  // a number that does not fit is error `value`.
  bool narrow_i64 = false;
  // By name. Tensors that are not wanted may be of any type of the format; of them nothing is kept,
  // and only their place in the file and the file's checksum are checked. Empty: all are.
  std::function<bool(std::string_view name)> wanted = {};
};

// To the CPU. Everything is checked before memory for the data is asked for, and the file's size
// bounds that. Errors: `io`; `format`, naming the byte or the tensor; `limit`: more than 65,536
// tensors, 100,000,000 bytes of header, 16 MiB of metadata, rank above 8, or numbers above 2^48;
// `dtype`: a tensor of a type that ebb does not have.
Checkpoint load_safetensors(const std::string& path, const LoadOptions& options = {});

}  // namespace ebb
