// Internal: not in <ebb/ebb.h>, not installed.
// Shape ops move elements and compute nothing, so they take every dtype as bytes. What concat and
// slice move is a set of runs at regular distances.
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ebb/ops/ops.h"

namespace ebb {

// `count` runs of `length` elements; run i is read from x at x_start + i · x_step and written to y
// at y_start + i · y_step.
struct Runs {
  std::int64_t count, length;
  std::int64_t x_start, x_step;
  std::int64_t y_start, y_step;
};

using CopyRuns = void(std::string_view op, const Runs& runs, const Tensor& x, Tensor& y);

namespace cpu {
CopyRuns copy_runs;

// f(Word{}) for a word as large as an element.
template <class F>
void visit_words(Dtype dtype, F&& f) {
  switch (size_of(dtype)) {
    case 1:
      return f(std::uint8_t{});
    case 2:
      return f(std::uint16_t{});
    case 4:
      return f(std::uint32_t{});
    default:
      return f(std::uint64_t{});
  }
}

// For a few elements a call of memmove would take longer than they do: words of 16, 8 or 4 bytes,
// of which the last overlaps the one before it.
template <class T>
void copy_row(const T* from, std::int64_t n, T* to) {
  const auto bytes = static_cast<std::int64_t>(sizeof(T)) * n;
  if (bytes > 256) return void(std::memcpy(to, from, static_cast<size_t>(bytes)));
  const auto copy = [=]<int size>(std::integral_constant<int, size>) {
    const auto move = [=](std::int64_t at) {
      std::memcpy(reinterpret_cast<char*>(to) + at, reinterpret_cast<const char*>(from) + at, size);
    };
    for (std::int64_t at = 0; at + size < bytes; at += size) move(at);
    move(bytes - size);
  };
  if (bytes >= 16) return copy(std::integral_constant<int, 16>());
  if (bytes >= 8) return copy(std::integral_constant<int, 8>());
  if (bytes >= 4) return copy(std::integral_constant<int, 4>());
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}
}  // namespace cpu
namespace gpu {
CopyRuns copy_runs;
}

}  // namespace ebb
