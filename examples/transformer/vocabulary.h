// The characters that a model knows. A token is a character's place among them.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace transformer {

using Tokens = std::vector<std::int32_t>;

// UTF-8 → code points. Error `format`, naming the byte at which the text is not UTF-8; `what` says
// whose text it is.
std::u32string code_points(std::string_view text, const std::string& what);

class Vocabulary {
 public:
  // In this order. Error `format` for none, and for one that occurs twice.
  explicit Vocabulary(std::u32string characters);
  static Vocabulary of(const std::u32string& text);  // its characters, in order of code point

  std::int64_t size() const { return static_cast<std::int64_t>(characters_.size()); }
  std::string utf8() const;

  // Error `value`, naming the first character that is not among them.
  Tokens encode(const std::u32string& text, const std::string& what) const;
  std::string decode(const Tokens& tokens) const;
  std::string decode(std::int32_t token) const;

 private:
  std::u32string characters_;
  std::unordered_map<char32_t, std::int32_t> places_;
};

}  // namespace transformer
