#include "ebb/core/cuda.cuh"
#include "ebb/ops/linalg/linear.h"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::narrow;
using gpu::widen;

constexpr int across = 32;  // columns of a block
constexpr int down = 8;     // rows that it reads at a time

// y[chunk, column] = Σ of x[row, column] over the rows of the chunk. Threads of one column add
// every `down`-th row; their sums are added in order.
template <class X, class Y>
__global__ void __launch_bounds__(across* down)
    column_sums(const X* x, std::int64_t rows, std::int64_t columns, std::int64_t chunk, Y* y) {
  __shared__ Compute<X> parts[down][across];
  const std::int64_t column = std::int64_t{blockIdx.x} * across + threadIdx.x;
  const std::int64_t first = blockIdx.y * chunk;
  const std::int64_t last = first + chunk < rows ? first + chunk : rows;
  Compute<X> sum = 0;
  if (column < columns)
    for (std::int64_t row = first + threadIdx.y; row < last; row += down)
      sum += widen(x[row * columns + column]);
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= columns) return;
  for (int i = 1; i < down; ++i) sum += parts[i][threadIdx.x];
  y[blockIdx.y * columns + column] = narrow<Y>(sum);
}

template <class X, class Y>
void sum_columns(const X* x, std::int64_t rows, std::int64_t columns, std::int64_t chunk, Y* y) {
  const auto chunks = static_cast<unsigned>(rows ? gpu::divide_up(rows, chunk) : 1);
  const dim3 grid(static_cast<unsigned>(gpu::divide_up<std::int64_t>(columns, across)), chunks);
  gpu::launch("linear", column_sums<X, Y>, grid, dim3(across, down), 0, x, rows, columns, chunk, y);
}

}  // namespace

// Few rows in one pass; many in at most 512 chunks, whose number follows from the shape alone.
void gpu::linear_bias_gradient(const Tensor& dy, Tensor& db) {
  visit<float, double, bf16>(dy.dtype(), "linear", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t columns = db.numel();
    if (columns == 0) return;
    const std::int64_t rows = dy.numel() / columns;
    constexpr std::int64_t least = 64;
    const std::int64_t chunk = std::max<std::int64_t>(least, divide_up<std::int64_t>(rows, 512));
    if (rows <= 2 * least)
      return sum_columns(dy.data<T>(), rows, columns, std::max<std::int64_t>(rows, 1),
                         db.data<T>());
    const std::int64_t chunks = divide_up(rows, chunk);
    Tensor parts = empty({chunks, columns}, {dtype_of<Compute<T>>, dy.device()});
    sum_columns(dy.data<T>(), rows, columns, chunk, parts.data<Compute<T>>());
    sum_columns(parts.data<Compute<T>>(), chunks, columns, chunks, db.data<T>());
  });
}

}  // namespace ebb
