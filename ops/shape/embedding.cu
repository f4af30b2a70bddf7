// The gradient, without sorting and without atomics on floats: the table's rows are cut into at
// most `most_ranges` ranges.
//  1. A block a range counts the indices that fall into it.
//  2. It lists them, in order: (place, row).
//  3. A block a row and 128 columns goes through its range's list, each of 8 warps 32 entries at a
//     time, and adds up what is its own, warps in order: the same bits at every run.
#include <limits>

#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"
#include "ebb/ops/shape/embedding.h"

namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "embedding";
constexpr int warps = 8;  // of every block that copies or adds

// One warp a row of the result; `width` elements at a time.
template <class T, int width>
__global__ void __launch_bounds__(warps* warp_size)
    gather_kernel(const std::int32_t* indices, const T* weight, std::int64_t n, std::int64_t rows,
                  std::int64_t cols, T* y) {
  using P = Pack<T, width>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.y;
  if (i >= n) return;
  const std::int64_t row = indices[i];
  const bool good = 0 <= row && row < rows;
  const std::int64_t packs = cols / width;
  const P* from = reinterpret_cast<const P*>(weight) + (good ? row : 0) * packs;
  P* to = reinterpret_cast<P*>(y) + i * packs;
  P nan;
#pragma unroll
  for (int j = 0; j < width; ++j)
    nan.v[j] = narrow<T>(std::numeric_limits<Compute<T>>::quiet_NaN());
  for (std::int64_t k = threadIdx.x; k < packs; k += warp_size) to[k] = good ? from[k] : nan;
}

template <class T, int width>
void gather(const Tensor& indices, const Tensor& weight, Tensor& y) {
  const auto blocks = static_cast<unsigned>(divide_up<std::int64_t>(indices.numel(), warps));
  launch(op, gather_kernel<T, width>, dim3(blocks), dim3(warp_size, warps), 0,
         indices.data<std::int32_t>(), weight.data<T>(), indices.numel(), weight.size(0),
         weight.size(1), y.data<T>());
}

constexpr std::int64_t most_ranges = 1024;
constexpr int list_threads = 512;
constexpr int per_thread = 4;  // adjacent indices a thread looks at

struct Ranges {
  std::int64_t rows;   // of the table
  std::int64_t chunk;  // rows of one range

  explicit Ranges(std::int64_t rows)
      : rows(rows), chunk(rows <= most_ranges ? 1 : divide_up(rows, most_ranges)) {}
  std::int64_t count() const { return divide_up(rows, chunk); }
  // first <= index < end of range r
  __device__ std::int64_t first(std::int64_t r) const { return r * chunk; }
  __device__ std::int64_t end(std::int64_t r) const {
    return rows < (r + 1) * chunk ? rows : (r + 1) * chunk;
  }
};

__global__ void __launch_bounds__(list_threads)
    count_kernel(const std::int32_t* indices, std::int64_t n, Ranges ranges, std::int32_t* counts) {
  const std::int64_t first = ranges.first(blockIdx.x), end = ranges.end(blockIdx.x);
  std::int32_t count = 0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < n; i += list_threads)
    count += first <= indices[i] && indices[i] < end;
  count = block_reduce<list_threads>(count, Sum{});
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// The sum of what threads before this one give, and of what all give.
struct Scan {
  std::int32_t before, all;
};
__device__ Scan scan(std::int32_t mine) {
  constexpr int scan_warps = list_threads / warp_size;
  __shared__ std::int32_t totals[scan_warps];
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  std::int32_t upto = mine;
#pragma unroll
  for (int offset = 1; offset < warp_size; offset *= 2) {
    const std::int32_t below = __shfl_up_sync(0xffffffffu, upto, offset);
    if (lane >= offset) upto += below;
  }
  __syncthreads();
  if (lane == warp_size - 1) totals[warp] = upto;
  __syncthreads();
  Scan result{upto - mine, 0};
#pragma unroll
  for (int w = 0; w < scan_warps; ++w) {
    if (w < warp) result.before += totals[w];
    result.all += totals[w];
  }
  return result;
}

// starts[r] is where the list of range r begins.
__global__ void __launch_bounds__(list_threads)
    list_kernel(const std::int32_t* indices, std::int64_t n, Ranges ranges,
                const std::int32_t* counts, std::int32_t* starts, int2* list) {
  const std::int64_t first = ranges.first(blockIdx.x), end = ranges.end(blockIdx.x);
  std::int32_t start = 0;
  for (unsigned r = threadIdx.x; r < blockIdx.x; r += list_threads) start += counts[r];
  start = block_reduce<list_threads>(start, Sum{});
  if (threadIdx.x == 0) starts[blockIdx.x] = start;
  if (counts[blockIdx.x] == 0) return;
  constexpr int tile = list_threads * per_thread;
  for (std::int64_t base = 0; base < n; base += tile) {
    const std::int64_t i = base + threadIdx.x * per_thread;
    std::int32_t row[per_thread];
    std::int32_t found = 0;
#pragma unroll
    for (int j = 0; j < per_thread; ++j) {
      row[j] = i + j < n ? indices[i + j] : -1;
      if (row[j] < first || row[j] >= end) row[j] = -1;
      found += row[j] >= 0;
    }
    const Scan places = scan(found);
    std::int64_t to = static_cast<std::int64_t>(start) + places.before;
#pragma unroll
    for (int j = 0; j < per_thread; ++j)
      if (row[j] >= 0) list[to++] = make_int2(static_cast<int>(i + j), row[j]);
    start += places.all;
  }
}

constexpr int columns_each = 4;  // of a thread, warp_size apart
constexpr int columns_tile = columns_each * warp_size;

template <class T>
__global__ void __launch_bounds__(warps* warp_size)
    add_kernel(const int2* list, const std::int32_t* counts, const std::int32_t* starts,
               const T* dy, Ranges ranges, std::int64_t cols, std::int64_t tiles, T* dw) {
  __shared__ double sums[warps][columns_tile];
  const std::int64_t row = blockIdx.x / tiles;
  const std::int64_t column = (blockIdx.x - row * tiles) * columns_tile + threadIdx.x;
  const std::int64_t range = row / ranges.chunk;
  const int2* uses = list + starts[range];
  const std::int32_t count = counts[range];
  double sum[columns_each] = {};
  for (std::int32_t first = threadIdx.y * warp_size; first < count; first += warps * warp_size) {
    const std::int32_t u = first + threadIdx.x;
    const int2 use = u < count ? uses[u] : make_int2(0, -1);
    for (unsigned own = __ballot_sync(~0u, use.y == row); own != 0; own &= own - 1) {
      const std::int64_t place = __shfl_sync(~0u, use.x, __ffs(own) - 1);
      const T* from = dy + place * cols;
#pragma unroll
      for (int k = 0; k < columns_each; ++k)
        if (column + k * warp_size < cols)
          sum[k] += static_cast<double>(widen(from[column + k * warp_size]));
    }
  }
#pragma unroll
  for (int k = 0; k < columns_each; ++k) sums[threadIdx.y][k * warp_size + threadIdx.x] = sum[k];
  __syncthreads();
  if (threadIdx.y >= columns_each) return;
  const std::int64_t mine = column + threadIdx.y * warp_size;
  if (mine >= cols) return;
  double total = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) total += sums[w][threadIdx.y * warp_size + threadIdx.x];
  dw[row * cols + mine] = narrow<T>(static_cast<Compute<T>>(total));
}

template <class T>
void add_uses(const Tensor& indices, const Tensor& dy, Tensor& dw) {
  const std::int64_t n = indices.numel(), cols = dw.size(1);
  const Ranges ranges(dw.size(0));
  const TensorOptions ints{Dtype::i32, dw.device()};
  Tensor counts = empty({ranges.count()}, ints);
  Tensor starts = empty({ranges.count()}, ints);
  Tensor list = empty({n, 2}, ints);
  auto* uses = static_cast<int2*>(list.raw());
  const dim3 blocks(static_cast<unsigned>(ranges.count()));
  launch(op, count_kernel, blocks, list_threads, 0, indices.data<std::int32_t>(), n, ranges,
         counts.data<std::int32_t>());
  launch(op, list_kernel, blocks, list_threads, 0, indices.data<std::int32_t>(), n, ranges,
         counts.data<std::int32_t>(), starts.data<std::int32_t>(), uses);
  const std::int64_t tiles = divide_up<std::int64_t>(cols, columns_tile);
  launch(op, add_kernel<T>, dim3(static_cast<unsigned>(ranges.rows * tiles)),
         dim3(warp_size, warps), 0, uses, counts.data<std::int32_t>(), starts.data<std::int32_t>(),
         dy.data<T>(), ranges, cols, tiles, dw.data<T>());
}

}  // namespace
}  // namespace gpu

void gpu::embedding(const Tensor& indices, const Tensor& weight, Tensor& y) {
  visit<float, double, bf16>(weight.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    constexpr int width = pack_size<T>;
    if (weight.size(1) % width == 0) return gather<T, width>(indices, weight, y);
    gather<T, 1>(indices, weight, y);
  });
}

void gpu::embedding_backward(const Tensor& indices, const Tensor& dy, Tensor& dw) {
  visit<float, double, bf16>(dy.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    if (dw.numel() > 0) add_uses<T>(indices, dy, dw);
  });
}

}  // namespace ebb
