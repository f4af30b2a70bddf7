#include "transformer/batch.h"

namespace transformer {

using namespace ebb;

namespace {

Batch empty_batch(std::int64_t rows, std::int64_t length, Device device) {
  const TensorOptions options{Dtype::i32, device};
  return {empty({rows, length}, options), empty({rows, length}, options)};
}

}  // namespace

Batch draw_windows(const Tensor& tokens, std::int64_t length, Rows rows) {
  require(tokens.numel() > length, Kind::value, "text",
          "shorter than a context and what follows it", text(tokens.numel(), " characters"),
          text("more than ", length));
  Batch batch = empty_batch(rows.count, length, tokens.device());
  run<cpu::draw_windows, gpu::draw_windows>(tokens.device(), tokens, rows, batch.x, batch.y);
  return batch;
}

Batch draw_problems(const Problems& problems, Rows rows, Device device) {
  Batch batch = empty_batch(rows.count, problems.length() - 1, device);
  run<cpu::draw_problems, gpu::draw_problems>(device, problems, rows, batch.x, batch.y);
  return batch;
}

void cpu::draw_windows(const Tensor& tokens, const Rows& rows, Tensor& x, Tensor& y) {
  const std::int64_t length = x.size(1);
  const auto* text = tokens.data<std::int32_t>();
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const auto* from = text + window_start(rows, r, tokens.numel() - length);
    std::copy_n(from, length, x.data<std::int32_t>() + r * length);
    std::copy_n(from + 1, length, y.data<std::int32_t>() + r * length);
  }
}

void cpu::draw_problems(const Problems& problems, const Rows& rows, Tensor& x, Tensor& y) {
  const std::int64_t length = x.size(1);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const std::uint64_t problem = problem_of(problems, rows, r);
    for (std::int64_t i = 0; i < length; ++i) {
      const int place = static_cast<int>(i);
      x.data<std::int32_t>()[r * length + i] = problems.token(problem, place);
      y.data<std::int32_t>()[r * length + i] = target(problems, problem, place);
    }
  }
}

}  // namespace transformer
