#include "ebb/ops/shape/runs.h"

#include <cstring>

#include "ebb/core/parallel.h"

namespace ebb {

void cpu::copy_runs(std::string_view, const Runs& r, const Tensor& x, Tensor& y) {
  const std::int64_t element = size_of(x.dtype());
  const std::int64_t bytes = r.length * element;
  if (bytes == 0) return;
  const char* from = static_cast<const char*>(x.raw()) + r.x_start * element;
  char* to = static_cast<char*>(y.raw()) + r.y_start * element;
  constexpr std::int64_t most = 1 << 16;  // bytes of a part: threads share out long runs
  const std::int64_t parts = (bytes + most - 1) / most;
  parallel_for(r.count * parts, 1 + (1 << 16) / std::min(bytes, most), [&](auto begin, auto end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t run = p / parts, at = p % parts * most;
      std::memcpy(to + run * r.y_step * element + at, from + run * r.x_step * element + at,
                  static_cast<size_t>(std::min(most, bytes - at)));
    }
  });
}

}  // namespace ebb
