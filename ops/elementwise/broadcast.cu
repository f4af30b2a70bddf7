#include "ebb/core/cuda.cuh"
#include "ebb/ops/elementwise/broadcast.h"

namespace ebb {
namespace {

using gpu::divide_up;
using gpu::Pack;
using gpu::pack_size;

constexpr int threads = 256;
constexpr std::int64_t row_chunk = 1 << 14;  // numbers a block adds up
constexpr int short_row = 1024;              // up to here a warp does a row
constexpr int rows_a_thread = 32;            // of a column

// Σ of n numbers from p on, this thread's share.
template <int group, class In>
__device__ gpu::Compute<In> share(const In* p, std::int64_t n, int thread) {
  using C = gpu::Compute<In>;
  constexpr int width = pack_size<In>;
  C sum = 0;
  std::int64_t done = 0;
  if (reinterpret_cast<std::uintptr_t>(p) % 16 == 0) {
    const auto* packs = reinterpret_cast<const Pack<In, width>*>(p);
    const std::int64_t whole = n / width;
#pragma unroll 4
    for (std::int64_t k = thread; k < whole; k += group) {
      const Pack<In, width> pack = packs[k];
#pragma unroll
      for (int j = 0; j < width; ++j) sum += gpu::widen(pack.v[j]);
    }
    done = whole * width;
  }
#pragma unroll 4
  for (std::int64_t i = done + thread; i < n; i += group) sum += gpu::widen(p[i]);
  return sum;
}

// One warp a row.
template <class In, class Out>
__global__ void __launch_bounds__(threads)
    short_rows_kernel(const In* x, std::int64_t rows, std::int64_t count, Out* y) {
  const std::int64_t row =
      blockIdx.x * std::int64_t{threads / gpu::warp_size} + threadIdx.x / gpu::warp_size;
  if (row >= rows) return;  // whole warps
  const int lane = threadIdx.x % gpu::warp_size;
  const auto sum =
      gpu::warp_reduce(share<gpu::warp_size>(x + row * count, count, lane), gpu::Sum{});
  if (lane == 0) y[row] = gpu::narrow<Out>(sum);
}

// One block a chunk of a row: y [rows, chunks].
template <class In, class Out>
__global__ void __launch_bounds__(threads)
    rows_kernel(const In* x, std::int64_t count, std::int64_t chunks, Out* y) {
  const std::int64_t row = blockIdx.x / chunks;
  const std::int64_t begin = blockIdx.x % chunks * row_chunk;
  const std::int64_t n = count - begin < row_chunk ? count - begin : row_chunk;
  const auto sum = gpu::block_reduce<threads>(
      share<threads>(x + row * count + begin, n, threadIdx.x), gpu::Sum{});
  if (threadIdx.x == 0) y[blockIdx.x] = gpu::narrow<Out>(sum);
}

// A block takes `lanes` packs of adjacent columns; threads / lanes rows of them at a time, over one
// chunk of rows: y [outer, chunks, inner].
template <int width, class In, class Out>
__global__ void __launch_bounds__(threads)
    columns_kernel(const In* x, std::int64_t count, std::int64_t inner, int lanes,
                   std::int64_t tiles, std::int64_t chunks, Out* y) {
  using C = gpu::Compute<In>;
  __shared__ C partial[threads * width];
  const int together = threads / lanes;  // rows
  const std::int64_t tile = blockIdx.x % tiles;
  const std::int64_t chunk = blockIdx.x / tiles % chunks;
  const std::int64_t outer = blockIdx.x / tiles / chunks;
  const int lane = threadIdx.x % lanes;
  const int row = threadIdx.x / lanes;
  const std::int64_t column = (tile * lanes + lane) * width;
  C sum[width] = {};
  if (row < together && column < inner) {
    const std::int64_t first = chunk * rows_a_thread * together;
    const std::int64_t end = first + rows_a_thread * together;
    const std::int64_t last = end < count ? end : count;
    const In* from = x + outer * count * inner + column;
#pragma unroll 8
    for (std::int64_t r = first + row; r < last; r += together) {
      const auto pack = *reinterpret_cast<const Pack<In, width>*>(from + r * inner);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += gpu::widen(pack.v[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < width; ++j) partial[j * threads + threadIdx.x] = sum[j];
  __syncthreads();
  if (row > 0 || column >= inner) return;
#pragma unroll
  for (int j = 0; j < width; ++j) {
    for (int r = 1; r < together; ++r) sum[j] += partial[j * threads + r * lanes + lane];
    y[(outer * chunks + chunk) * inner + column + j] = gpu::narrow<Out>(sum[j]);
  }
}

dim3 grid(std::int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }

template <class In, class Out>
void sum_rows(const Tensor& x, std::int64_t rows, std::int64_t count, std::int64_t chunks,
              Tensor& y) {
  if (count <= short_row) {
    gpu::launch("sum", short_rows_kernel<In, Out>,
                grid(divide_up<std::int64_t>(rows, threads / gpu::warp_size)), threads, 0,
                x.data<In>(), rows, count, y.data<Out>());
  } else {
    gpu::launch("sum", rows_kernel<In, Out>, grid(rows * chunks), threads, 0, x.data<In>(), count,
                chunks, y.data<Out>());
  }
}

struct Columns {
  int width;  // of a load
  int lanes;  // loads side by side
  std::int64_t tiles;
  std::int64_t rows;  // a block

  Columns(const void* x, std::int64_t inner, int pack, std::int64_t row_bytes) {
    const bool packed = row_bytes % 16 == 0 && reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
    width = packed ? pack : 1;
    lanes = static_cast<int>(std::min<std::int64_t>(gpu::warp_size, inner / width));
    tiles = divide_up<std::int64_t>(inner / width, lanes);
    rows = rows_a_thread * (threads / lanes);
  }
};

template <class In, class Out>
void sum_columns(const Tensor& x, std::int64_t outer, std::int64_t count, std::int64_t inner,
                 const Columns& c, std::int64_t chunks, Tensor& y) {
  const auto kernel =
      c.width == 1 ? columns_kernel<1, In, Out> : columns_kernel<pack_size<In>, In, Out>;
  gpu::launch("sum", kernel, grid(outer * chunks * c.tiles), threads, 0, x.data<In>(), count, inner,
              c.lanes, c.tiles, chunks, y.data<Out>());
}

}  // namespace

void gpu::sum_middle(const Tensor& x, std::int64_t outer, std::int64_t count, std::int64_t inner,
                     Tensor& y) {
  if (outer * inner == 0) return;
  const auto pack = static_cast<int>(16 / size_of(x.dtype()));
  const Columns columns(x.raw(), inner, pack, inner * size_of(x.dtype()));
  const std::int64_t chunk = inner == 1 ? row_chunk : columns.rows;
  const std::int64_t chunks = std::max<std::int64_t>(1, divide_up(count, chunk));
  const Dtype wide = x.dtype() == Dtype::bf16 ? Dtype::f32 : x.dtype();
  Tensor partial = chunks == 1 ? y : empty({outer, chunks, inner}, {wide, x.device()});
  const auto pass = [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    inner == 1 ? sum_rows<In, Out>(x, outer, count, chunks, partial)
               : sum_columns<In, Out>(x, outer, count, inner, columns, chunks, partial);
  };
  if (x.dtype() == Dtype::f64) {
    pass(double{}, double{});
  } else if (x.dtype() == Dtype::f32) {
    partial.dtype() == Dtype::bf16 ? pass(float{}, bf16{}) : pass(float{}, float{});
  } else {
    partial.dtype() == Dtype::bf16 ? pass(bf16{}, bf16{}) : pass(bf16{}, float{});
  }
  if (chunks > 1) sum_middle(partial, outer, chunks, inner, y);
}

}  // namespace ebb
