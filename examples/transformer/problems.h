// Problems that are made on the fly, with one right answer each.
//
//   addition   123+456=9750     the sum's digits from the last to the first, as one adds by hand
//   sort       3141592653>1123345569
//
// A problem is a number below count(): its digits are what is asked. One in sixteen, by a hash of
// that number, is held out: never trained on. All of it can be computed where the batch is, on
// either device.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "ebb/core/random.h"
#include "transformer/vocabulary.h"

namespace transformer {

enum class Skill { addition, sort };

struct Problems {
  Skill skill;
  int digits;  // of each number to add; or how many to sort

  static constexpr int most_digits(Skill skill) { return skill == Skill::addition ? 9 : 18; }

  constexpr std::uint64_t count() const {  // at most 10¹⁸
    std::uint64_t n = 1;
    for (int i = 0; i < (skill == Skill::addition ? 2 * digits : digits); ++i) n *= 10;
    return n;
  }
  constexpr int question() const {  // characters, with the sign that ends it
    return skill == Skill::addition ? 2 * digits + 2 : digits + 1;
  }
  constexpr int answer() const { return skill == Skill::addition ? digits + 1 : digits; }
  constexpr int length() const { return question() + answer(); }

  // Token `place` of a problem written out with its answer; digits are their own tokens.
  constexpr std::int32_t token(std::uint64_t problem, int place) const;

  Vocabulary vocabulary() const;
};

constexpr std::int32_t digit(std::uint64_t number, int place) {  // 0: the last
  for (int i = 0; i < place; ++i) number /= 10;
  return static_cast<std::int32_t>(number % 10);
}

constexpr std::int32_t Problems::token(std::uint64_t problem, int place) const {
  constexpr std::int32_t first_sign = 10, second_sign = 11;
  if (skill == Skill::addition) {
    const std::uint64_t a = problem / Problems{Skill::sort, digits}.count();
    const std::uint64_t b = problem % Problems{Skill::sort, digits}.count();
    if (place < digits) return digit(a, digits - 1 - place);
    if (place == digits) return first_sign;
    if (place <= 2 * digits) return digit(b, 2 * digits - place);
    if (place == 2 * digits + 1) return second_sign;
    return digit(a + b, place - question());
  }
  if (place < digits) return digit(problem, digits - 1 - place);
  if (place == digits) return first_sign;
  // The j-th smallest: the first value that j digits or more do not exceed.
  const int j = place - digits;
  int seen = 0;
  for (std::int32_t value = 0; value < 9; ++value) {
    for (int i = 0; i < digits; ++i) seen += digit(problem, i) == value;
    if (seen >= j) return value;
  }
  return 9;
}

constexpr std::uint64_t wide(const ebb::Philox& random) {
  return std::uint64_t{random.v[0]} << 32 | random.v[1];
}

constexpr bool held_out(std::uint64_t problem) {
  constexpr std::uint64_t key = 0x686f6c64;
  return ebb::philox(key, problem, 0).v[0] < 0x10000000u;
}

// The problem that a stream gives under a number: uniform among those held out, or the others.
constexpr std::uint64_t drawn(const Problems& problems, ebb::Stream stream, std::uint64_t number,
                              bool held) {
  for (std::uint64_t attempt = 0;; ++attempt) {
    const ebb::Philox random = ebb::philox(stream.seed, number, stream.index + attempt);
    const std::uint64_t problem = wide(random) % problems.count();
    if (held_out(problem) == held) return problem;
  }
}

// `most` different held-out problems, or all when there are fewer; always the same.
std::vector<std::uint64_t> unseen(const Problems& problems, std::size_t most);

// "12+7" → the tokens of "012+007="; "52431" → those of "52431>". Error `value` for another form,
// and for numbers of other length.
Tokens question(const Problems& problems, const std::string& asked);

// An answer's tokens as one reads them: "19", "12345".
std::string readable(const Problems& problems, const Tokens& answer);

}  // namespace transformer
