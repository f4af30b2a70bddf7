// Internal: not in <ebb/ebb.h>, not installed.
// Shape ops move elements and compute nothing, so they take every dtype as bytes. What concat and
// slice move is a set of runs at regular distances.
#pragma once
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
}
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
