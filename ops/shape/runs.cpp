#include "ebb/ops/shape/runs.h"

#include "ebb/core/parallel.h"

namespace ebb {
namespace {

// Runs of a few elements, whose number the compiler knows.
template <class Word, int length>
void copy_short(const Runs& r, const Word* x, Word* y) {
  parallel_for(r.count, 1 << 14, [=](std::int64_t begin, std::int64_t end) {
    const Word* from = x + r.x_start + begin * r.x_step;
    Word* to = y + r.y_start + begin * r.y_step;
    for (std::int64_t i = begin; i < end; ++i, from += r.x_step, to += r.y_step)
      for (int k = 0; k < length; ++k) to[k] = from[k];
  });
}

// Runs are cut into parts, so that threads share out long ones.
template <class Word>
void copy_words(const Runs& r, const Word* x, Word* y) {
  constexpr std::int64_t most = (1 << 16) / sizeof(Word);
  switch (r.length) {
    case 0:
      return;
    case 1:
      return copy_short<Word, 1>(r, x, y);
    case 2:
      return copy_short<Word, 2>(r, x, y);
    case 3:
      return copy_short<Word, 3>(r, x, y);
    case 4:
      return copy_short<Word, 4>(r, x, y);
  }
  const std::int64_t parts = (r.length + most - 1) / most;
  const std::int64_t worth_a_thread = 1 + most / std::min(r.length, most);
  parallel_for(r.count * parts, worth_a_thread, [=](std::int64_t begin, std::int64_t end) {
    const Word* from = x + r.x_start;
    Word* to = y + r.y_start;
    for (std::int64_t run = begin; run < end && parts == 1; ++run)
      cpu::copy_row(from + run * r.x_step, r.length, to + run * r.y_step);
    for (std::int64_t p = begin; p < end && parts > 1; ++p) {
      const std::int64_t run = p / parts, at = p % parts * most;
      cpu::copy_row(from + run * r.x_step + at, std::min(most, r.length - at),
                    to + run * r.y_step + at);
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
