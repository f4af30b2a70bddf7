#include "transformer/vocabulary.h"

#include "ebb/core/error.h"
#include "ebb/core/utf8.h"

namespace transformer {

using ebb::Kind;
using ebb::require;
using ebb::text;

namespace {

// As a message may show it: itself, or its number when it would not be seen.
std::string named(char32_t c) {
  std::string out;
  if (ebb::is_printable(c))
    ebb::append_utf8(out, c);
  else
    out = "character " + std::to_string(static_cast<std::uint32_t>(c));
  return "'" + out + "'";
}

}  // namespace

std::u32string code_points(std::string_view utf8, const std::string& what) {
  std::u32string out;
  out.reserve(utf8.size());
  for (size_t at = 0; at < utf8.size();) {
    const ebb::CodePoint c = ebb::first_code_point(utf8.substr(at, 4));
    require(c.bytes > 0, Kind::format, "text", text(what, " is not UTF-8"), text("byte ", at),
            "UTF-8 text");
    out.push_back(c.value);
    at += static_cast<size_t>(c.bytes);
  }
  return out;
}

Vocabulary::Vocabulary(std::u32string characters) : characters_(std::move(characters)) {
  for (const char32_t c : characters_)
    places_.emplace(c, static_cast<std::int32_t>(places_.size()));
  require(!characters_.empty() && places_.size() == characters_.size(), Kind::format, "vocabulary",
          "not a list of different characters", text(characters_.size(), " of them"),
          "each of them once");
}

Vocabulary Vocabulary::of(const std::u32string& text) {
  std::vector<bool> seen(0x110000);
  for (const char32_t c : text) seen[c] = true;
  std::u32string characters;
  for (char32_t c = 0; c < seen.size(); ++c)
    if (seen[c]) characters += c;
  return Vocabulary(std::move(characters));
}

std::string Vocabulary::utf8() const {
  std::string out;
  for (const char32_t c : characters_) ebb::append_utf8(out, c);
  return out;
}

Tokens Vocabulary::encode(const std::u32string& text, const std::string& what) const {
  Tokens out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto found = places_.find(text[i]);
    if (found == places_.end())
      ebb::raise(Kind::value, "vocabulary", what + " has a character that the model does not know",
                 named(text[i]) + " at place " + std::to_string(i), "the training text's only");
    out.push_back(found->second);
  }
  return out;
}

std::string Vocabulary::decode(std::int32_t token) const { return decode(Tokens{token}); }

std::string Vocabulary::decode(const Tokens& tokens) const {
  std::string out;
  for (const std::int32_t token : tokens)
    ebb::append_utf8(out, characters_.at(static_cast<size_t>(token)));
  return out;
}

}  // namespace transformer
