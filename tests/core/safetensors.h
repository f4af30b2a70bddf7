// Files for the tests of checkpoints.
#pragma once
#include "ebb/core/safetensors.h"

#include <cstring>
#include <iterator>

#include "folder.h"
#include "twins.h"

namespace ebb::test {

struct CheckpointFolder : Folder {
  std::string file(const std::string& name = "c.safetensors") const { return path / name; }
  size_t files() const { return names_in(path).size(); }
};

inline std::string length_prefix(std::uint64_t n) {
  return {reinterpret_cast<const char*>(&n), sizeof(n)};
}

// A file with this header and that many bytes of data.
inline std::string with_header(const std::string& json, size_t data) {
  return length_prefix(json.size()) + json + std::string(data, '\1');
}

inline Checkpoint sample() {
  return {{{"u", tensor<std::uint8_t>({1, 2, 255}, {3})},
           {"layer/é.\"w\"", tensor<float>({1, -2, 3e38f, 4, 5, -0.0f}, {2, 3})},
           {"d", tensor<double>({1e300}, {})},
           {"none", zeros({0, 3})},
           {"h", tensor<float>({1, -2.5f}, {2}).to(Dtype::bf16)},
           {"i", tensor<std::int32_t>({-7, INT32_MAX}, {2, 1})}},
          {{"step", "100"}, {"text", "two\nlines, \"quotes\", \\, \x01 and ü"}, {"", ""}}};
}

inline std::vector<std::byte> bytes_of(const Tensor& x) {
  const Tensor here = x.to(cpu_device);
  const auto* p = static_cast<const std::byte*>(here.raw());
  return {p, p + here.bytes()};
}

inline bool same(const Checkpoint& a, const Checkpoint& b) {
  return a.metadata == b.metadata &&
         std::ranges::equal(a.tensors, b.tensors, [](const auto& p, const auto& q) {
           return p.first == q.first && p.second.dtype() == q.second.dtype() &&
                  p.second.shape() == q.second.shape() && bytes_of(p.second) == bytes_of(q.second);
         });
}

// Whether loading raises one of the kinds that a bad file may raise.
inline bool refused(const std::string& path) {
  try {
    load_safetensors(path);
    return false;
  } catch (const Error& error) {
    return error.kind() == Kind::format || error.kind() == Kind::limit ||
           error.kind() == Kind::dtype;
  }
}

}  // namespace ebb::test
