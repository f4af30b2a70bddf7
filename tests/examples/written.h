// A problem as one would write it, by another way than Problems::token.
#pragma once
#include <algorithm>
#include <string>

#include "transformer/task.h"

namespace transformer::test {

inline std::string written(const Problems& problems, std::uint64_t problem) {
  const auto n = static_cast<std::size_t>(problems.digits);
  const auto padded = [](std::uint64_t number, std::size_t width) {
    std::string s = std::to_string(number);
    return std::string(width - s.size(), '0') + s;
  };
  if (problems.skill == Skill::sort) {
    const std::string question = padded(problem, n);
    std::string answer = question;
    std::sort(answer.begin(), answer.end());
    return question + ">" + answer;
  }
  const std::string both = padded(problem, 2 * n);
  const std::uint64_t sum = std::stoull(both.substr(0, n)) + std::stoull(both.substr(n));
  std::string answer = padded(sum, n + 1);
  std::reverse(answer.begin(), answer.end());
  return both.substr(0, n) + "+" + both.substr(n) + "=" + answer;
}

}  // namespace transformer::test
