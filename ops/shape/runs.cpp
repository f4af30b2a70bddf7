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
  parallel_for(r.count, 1 + (1 << 18) / bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      std::memcpy(to + i * r.y_step * element, from + i * r.x_step * element,
                  static_cast<size_t>(bytes));
  });
}

}  // namespace ebb
