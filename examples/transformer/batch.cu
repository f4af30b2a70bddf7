#include "transformer/batch.h"

#include "ebb/core/cuda.cuh"

namespace transformer {
namespace {

constexpr unsigned threads = 128;

// A block a row.
__global__ void __launch_bounds__(threads)
    windows_kernel(const std::int32_t* tokens, std::int64_t starts, Rows rows, std::int64_t length,
                   std::int32_t* x, std::int32_t* y) {
  const std::int64_t row = blockIdx.x;
  const std::int32_t* from = tokens + window_start(rows, row, starts);
  for (std::int64_t i = threadIdx.x; i < length; i += threads) {
    x[row * length + i] = from[i];
    y[row * length + i] = from[i + 1];
  }
}

__global__ void __launch_bounds__(threads)
    problems_kernel(Problems problems, Rows rows, int length, std::int32_t* x, std::int32_t* y) {
  const std::int64_t row = blockIdx.x;
  const std::uint64_t problem = problem_of(problems, rows, row);
  for (int i = static_cast<int>(threadIdx.x); i < length; i += threads) {
    x[row * length + i] = problems.token(problem, i);
    y[row * length + i] = target(problems, problem, i);
  }
}

}  // namespace

void gpu::draw_windows(const ebb::Tensor& tokens, const Rows& rows, ebb::Tensor& x,
                       ebb::Tensor& y) {
  const std::int64_t length = x.size(1);
  ebb::gpu::launch("draw_windows", windows_kernel, dim3(static_cast<unsigned>(rows.count)), threads,
                   0, tokens.data<std::int32_t>(), tokens.numel() - length, rows, length,
                   x.data<std::int32_t>(), y.data<std::int32_t>());
}

void gpu::draw_problems(const Problems& problems, const Rows& rows, ebb::Tensor& x,
                        ebb::Tensor& y) {
  ebb::gpu::launch("draw_problems", problems_kernel, dim3(static_cast<unsigned>(rows.count)),
                   threads, 0, problems, rows, static_cast<int>(x.size(1)), x.data<std::int32_t>(),
                   y.data<std::int32_t>());
}

}  // namespace transformer
