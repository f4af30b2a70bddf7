// Files that were cut, and bits that were turned over.
#include <fstream>

#include "safetensors.h"

using namespace ebb;
using namespace ebb::test;
namespace fs = std::filesystem;

namespace {

// A saved file with several tensors, and where its data starts.
struct Victim {
  CheckpointFolder folder;
  std::string path = folder.file();
  std::string bytes;
  size_t data = 8;
  Victim() {
    Checkpoint c = sample();
    c.tensors.emplace_back("large", randn({1000}, 1));
    save_safetensors(path, c);
    bytes = read(path);
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof(header));
    data += header;
  }
  // Whether the file loads with one bit turned over.
  bool loads_with(size_t byte, int bit) const {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&](char c) {
      file.seekp(static_cast<std::streamoff>(byte));
      file.put(c).flush();
    };
    put(static_cast<char>(bytes[byte] ^ (1 << bit)));
    const bool loads = !refused(path);
    put(bytes[byte]);
    return loads;
  }
};

}  // namespace

TEST_CASE("safetensors: a file cut anywhere, or with a byte too many, is refused") {
  const Victim victim;
  int loaded = 0;
  fs::resize_file(victim.path, victim.bytes.size() + 1);
  loaded += !refused(victim.path);
  for (size_t k = 100; k-- > 0;) {
    fs::resize_file(victim.path, victim.data + (victim.bytes.size() - victim.data) * k / 100);
    loaded += !refused(victim.path);
  }
  for (size_t n = victim.data; n-- > 0;) {
    fs::resize_file(victim.path, n);
    loaded += !refused(victim.path);
  }
  CHECK(loaded == 0);
}

TEST_CASE("safetensors: one damaged bit is noticed, wherever it is") {
  const Victim victim;
  int unnoticed = 0;
  for (size_t byte = 0; byte < victim.data; ++byte)
    for (int bit = 0; bit < 8; ++bit) unnoticed += victim.loads_with(byte, bit);
  CHECK(unnoticed == 0);
  for (size_t k = 0; k < 1000; ++k) {
    const Philox random = philox(7, k, 0);
    const size_t byte = victim.data + random.v[0] % (victim.bytes.size() - victim.data);
    unnoticed += victim.loads_with(byte, static_cast<int>(random.v[1] % 8));
  }
  CHECK(unnoticed == 0);
}
