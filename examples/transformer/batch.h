// Batches made on the device, by seed and number of the row alone, so that a run can start
// anywhere: windows of a text, and problems with their answers.
#pragma once
#include "ebb/ebb.h"
#include "transformer/problems.h"

namespace transformer {

struct Batch {
  ebb::Tensor x;  // i32 [rows, length]
  ebb::Tensor y;  // what comes after each token; `ignored` where nothing is to be learned
};
inline constexpr std::int32_t ignored = -100;

// Rows first … first + count − 1 of the endless sequence of rows that a seed gives; or, where
// `steps` points to a number on the batch's device, those of that step: a_step rows further each.
struct Rows {
  std::uint64_t seed;
  std::uint64_t first;
  std::int64_t count;
  const std::int32_t* steps = nullptr;
  std::uint64_t a_step = 0;

  constexpr std::uint64_t number(std::int64_t row) const {
    const std::uint64_t before = steps ? static_cast<std::uint64_t>(*steps) * a_step : 0;
    return before + first + static_cast<std::uint64_t>(row);
  }
};

// Random windows of `length` tokens. tokens i32 [n]; error `value` unless n > length.
Batch draw_windows(const ebb::Tensor& tokens, std::int64_t length, Rows rows);

// Problems that are not held out; only their answers are to be learned.
Batch draw_problems(const Problems& problems, Rows rows, ebb::Device device);

// Training data has random streams of its own.
inline constexpr std::uint64_t batch_stream = std::uint64_t{1} << 42;

constexpr std::int64_t window_start(Rows rows, std::int64_t row, std::int64_t starts) {
  const ebb::Philox random = ebb::philox(rows.seed, rows.number(row), batch_stream);
  return static_cast<std::int64_t>(wide(random) % static_cast<std::uint64_t>(starts));
}

constexpr std::uint64_t problem_of(const Problems& problems, Rows rows, std::int64_t row) {
  return drawn(problems, {rows.seed, batch_stream}, rows.number(row), false);
}

constexpr std::int32_t target(const Problems& problems, std::uint64_t problem, int place) {
  return place + 1 < problems.question() ? ignored : problems.token(problem, place + 1);
}

using DrawWindows = void(const ebb::Tensor& tokens, const Rows& rows, ebb::Tensor& x,
                         ebb::Tensor& y);
using DrawProblems = void(const Problems& problems, const Rows& rows, ebb::Tensor& x,
                          ebb::Tensor& y);
namespace cpu {
DrawWindows draw_windows;
DrawProblems draw_problems;
}  // namespace cpu
namespace gpu {
DrawWindows draw_windows;
DrawProblems draw_problems;
}  // namespace gpu

}  // namespace transformer
