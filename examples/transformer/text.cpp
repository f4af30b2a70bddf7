#include "transformer/text.h"

#include <zlib.h>

#include "common/file.h"
#include "common/text.h"
#include "ebb/core/error.h"

namespace transformer {

using ebb::Kind;
using ebb::require;
using example::quoted;

namespace {

constexpr std::int64_t gibibyte = std::int64_t{1} << 30;

std::string find() {
  std::vector<std::string> tried;
  for (const std::string& folder : example::data_folders()) {
    tried.push_back(example::join(folder, "tinyshakespeare/input.txt"));
    if (example::present(tried.back())) return tried.back();
  }
  ebb::raise(Kind::io, "text", "no text was found", "nothing at " + example::listed(tried),
             "--text FILE, or what examples/transformer/download.sh fetches");
}

}  // namespace

Tokens Text::training() const {
  return {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(tokens.size() * 9 / 10)};
}

Tokens Text::validation() const {
  return {tokens.begin() + static_cast<std::ptrdiff_t>(tokens.size() * 9 / 10), tokens.end()};
}

Text load_text(const std::string& given) {
  const std::string path = given.empty() ? find() : given;
  const auto bytes = example::read_file<std::string>("text", path, gibibyte);
  require(!bytes.empty(), Kind::value, "text", ebb::text(quoted(path), " is empty"), "0 characters",
          "a text");
  const size_t nul = bytes.find('\0');
  require(nul == std::string::npos, Kind::format, "text",
          ebb::text(quoted(path), " has a character that no checkpoint can name"),
          ebb::text("U+0000 at byte ", nul), "a text without it");
  const std::u32string characters = code_points(bytes, quoted(path));
  Vocabulary vocabulary = Vocabulary::of(characters);
  Tokens tokens = vocabulary.encode(characters, path);
  const auto* data = reinterpret_cast<const Bytef*>(bytes.data());
  const auto crc = static_cast<std::uint32_t>(crc32_z(0, data, bytes.size()));
  return {path, std::move(vocabulary), std::move(tokens), crc};
}

}  // namespace transformer
