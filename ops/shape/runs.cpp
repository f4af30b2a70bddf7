#include "ebb/ops/shape/runs.h"

#include "ebb/core/parallel.h"

namespace ebb {
namespace {

// Runs are cut into parts, so that threads share out long ones.
template <class Word>
void copy_words(const Runs& r, const Word* x, Word* y) {
  constexpr std::int64_t most = (1 << 16) / sizeof(Word);
  if (r.length == 0) return;
  const std::int64_t parts = (r.length + most - 1) / most;
  const std::int64_t worth_a_thread = 1 + most / std::min(r.length, most);
  parallel_for(r.count * parts, worth_a_thread, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t run = parts == 1 ? p : p / parts, at = (p - run * parts) * most;
      cpu::copy_row(x + r.x_start + run * r.x_step + at, std::min(most, r.length - at),
                    y + r.y_start + run * r.y_step + at);
    }
  });
}

}  // namespace

void cpu::copy_runs(std::string_view, const Runs& r, const Tensor& x, Tensor& y) {
  visit_words(x.dtype(), [&](auto zero) {
    using Word = decltype(zero);
    copy_words(r, static_cast<const Word*>(x.raw()), static_cast<Word*>(y.raw()));
  });
}

}  // namespace ebb
