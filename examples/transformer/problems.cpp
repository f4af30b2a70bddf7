#include "transformer/problems.h"

#include <algorithm>
#include <set>

#include "ebb/core/error.h"

namespace transformer {

using ebb::Kind;
using ebb::require;

namespace {

constexpr ebb::Stream unseen_stream{0x756e73656e, 0};

bool all_digits(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return '0' <= c && c <= '9'; });
}

// "7" → "007"
std::string padded(const Problems& problems, std::string_view number) {
  const auto most = static_cast<std::size_t>(problems.digits);
  const bool ok = !number.empty() && number.size() <= most && all_digits(number);
  require(ok, Kind::value, "addition", "not a number that the model can add", number,
          ebb::text("1 to ", most, " digits, as in 12+7"));
  return std::string(most - number.size(), '0').append(number);
}

}  // namespace

Vocabulary Problems::vocabulary() const {
  return Vocabulary(skill == Skill::addition ? U"0123456789+=" : U"0123456789>");
}

std::vector<std::uint64_t> unseen(const Problems& problems, std::size_t most) {
  constexpr std::uint64_t few = 2000000;  // so that all can be looked at
  if (problems.count() > few) {
    std::set<std::uint64_t> found;
    for (std::uint64_t i = 0; found.size() < most; ++i)
      found.insert(drawn(problems, unseen_stream, i, true));
    return {found.begin(), found.end()};
  }
  std::vector<std::pair<std::uint64_t, std::uint64_t>> all;  // in random order
  for (std::uint64_t p = 0; p < problems.count(); ++p)
    if (held_out(p)) all.emplace_back(wide(ebb::philox(unseen_stream.seed, p, 0)), p);
  std::sort(all.begin(), all.end());
  all.resize(std::min(most, all.size()));
  std::vector<std::uint64_t> found;
  for (const auto& [order, problem] : all) found.push_back(problem);
  return found;
}

Tokens question(const Problems& problems, const std::string& asked) {
  std::string written = asked;
  if (problems.skill == Skill::addition) {
    if (written.ends_with('=')) written.pop_back();
    const std::size_t plus = written.find('+');
    require(plus != written.npos, Kind::value, "addition", "not an addition", asked, "as in 12+7");
    written = padded(problems, written.substr(0, plus)) + "+" +
              padded(problems, written.substr(plus + 1)) + "=";
  } else {
    if (written.ends_with('>')) written.pop_back();
    const bool ok =
        written.size() == static_cast<std::size_t>(problems.digits) && all_digits(written);
    require(ok, Kind::value, "sort", "not what the model can sort", asked,
            ebb::text(problems.digits, " digits"));
    written += '>';
  }
  return problems.vocabulary().encode({written.begin(), written.end()}, "the prompt");
}

std::string readable(const Problems& problems, const Tokens& answer) {
  std::string out = problems.vocabulary().decode(answer);
  if (problems.skill == Skill::sort) return out;
  std::reverse(out.begin(), out.end());
  return out.substr(std::min(out.find_first_not_of('0'), out.size() - 1));
}

}  // namespace transformer
