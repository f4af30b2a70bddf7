// Internal: not in <ebb/ebb.h>, not installed.
// Shape ops move elements and compute nothing, so they take every dtype as bytes. What concat and
// slice move is a set of runs at regular distances.
#pragma once
#include <algorithm>

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

// For a few elements a call of memmove would take longer than they do.
template <class T>
void copy_row(const T* from, std::int64_t n, T* to) {
  if (n > 16) return void(std::copy_n(from, n, to));
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}
}  // namespace cpu
namespace gpu {
CopyRuns copy_runs;
}

// run() without its widening of bf16: bytes are bytes.
template <auto Cpu, auto Gpu, class... Args>
void run_bytes(Device device, Args&&... arguments) {
  if (device.is_cuda()) {
    run<Cpu, Gpu>(device, arguments...);
  } else {
    Cpu(arguments...);
  }
}

}  // namespace ebb
