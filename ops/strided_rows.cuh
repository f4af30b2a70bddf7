// Lines along a dimension that is not the last, on the GPU: the bodies of rows.cuh for
// [outer, n, inner] along n. Of few long lines all blocks of the GPU have a share, and tell each
// other through memory what their shares come to.
#pragma once
#include <algorithm>
#include <utility>

#include "ebb/core/tensor.h"
#include "ebb/ops/exchange.cuh"
#include "ebb/ops/row_steps.cuh"

namespace ebb::gpu {

inline constexpr int strided_threads = 1024;         // at most, of a block
inline constexpr std::int64_t strided_blocks = 256;  // that are enough for every GPU

// Lines of n, each cut into `slices` of `chunk`: as in RowLayout, what the engine calls a row is
// one slice, whose columns count from its start. index = (outer · slices + slice) · inner + inner
// place. Unless the slices are `shared`: then they remain one row, which their blocks reduce
// together.
struct LineLayout {
  std::int64_t outer;
  std::int64_t n;
  std::int64_t inner;
  std::int64_t slices = 1;
  std::int64_t chunk = n;

  __host__ __device__ std::int64_t lines() const { return outer * inner; }
};

// Few long lines are cut, so that there are blocks enough with 8 lines each.
inline LineLayout slice_lines(std::int64_t outer, std::int64_t n, std::int64_t inner) {
  constexpr std::int64_t shortest = 1024;
  LineLayout s{outer, n, inner};
  if (s.lines() == 0) return s;
  const std::int64_t wanted =
      std::min(8 * strided_blocks / s.lines(), divide_up<std::int64_t>(n, shortest));
  if (wanted <= 1) return s;
  s.chunk = divide_up(n, wanted);
  s.slices = divide_up(n, s.chunk);
  return s;
}

// One (outer, inner) pair; blockDim.x neighbouring pairs a block, blockDim.y threads on each, both
// powers of two. `told` is [2][slices][lines], for shared slices.
template <class T, int inputs, bool shared>
class StridedRow : public RowSteps<StridedRow<T, inputs, shared>, T> {
 public:
  using C = Compute<T>;
  static constexpr bool of_grid = shared;

  __device__ StridedRow(const LineLayout& s, double* told, const T* const (&x)[inputs])
      : s_(s),
        inner_(s.inner),
        told_(told),
        slot_(std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) {
    const bool inside = slot_ < s.lines();
    const std::int64_t line = inside ? slot_ : 0;
    const std::int64_t o = line / s.inner, i = line - o * s.inner;
    const std::int64_t first = blockIdx.y * s.chunk, rest = s.n - first;
    index_ = shared ? line : (o * s.slices + blockIdx.y) * s.inner + i;
    column_ = shared ? first : 0;
    n_ = !inside || rest < 0 ? 0 : rest < s.chunk ? rest : s.chunk;
    leader_ = inside && threadIdx.y == 0 && (!shared || blockIdx.y == 0);
    offset_ = (o * s.n + first) * s.inner + i;
#pragma unroll
    for (int i = 0; i < inputs; ++i) x_[i] = x[i] + offset_;
  }

  __device__ std::int64_t index() const { return index_; }
  __device__ bool leader() const { return leader_; }

  // As a Row's: a window is a few elements, loaded before the first is used.
  template <class F>
  __device__ void windows(F f) {
    for (std::int64_t k = threadIdx.y; k < n_; k += window * blockDim.y) {
      T x[inputs][window];
#pragma unroll
      for (int w = 0; w < window; ++w)
        if (k + w * blockDim.y < n_)
#pragma unroll
          for (int i = 0; i < inputs; ++i) x[i][w] = x_[i][(k + w * blockDim.y) * inner_];
      f([&](auto g) { visit(x, k, g, std::make_index_sequence<inputs>{}); });
    }
  }

  // A tree over threadIdx.y; every thread of the pair gets the result.
  template <class Op, class A>
  __device__ A reduce(Op op, A a) {
    __shared__ A partial[strided_threads];
    a = over_block(op, a, static_cast<int>(blockDim.y), partial);
    if constexpr (shared) a = over_slices(op, a, partial);
    return a;
  }

  // Each element in double: windows of a thread are short, and there are no packs to write.
  template <class Total = C, class F>
  __device__ Total sum(F f) {
    double total = 0;
    this->each([&](std::int64_t k, auto... x) { total += f(k, x...); });
    return static_cast<Total>(reduce(Sum{}, total));
  }

  template <class F>
  __device__ void write(T* y, F f) {
    y += offset_ - column_ * inner_;
    this->each([&](std::int64_t k, auto... x) { y[k * inner_] = narrow<T>(f(k, x...)); });
  }

 private:
  static constexpr int window = 4;

  template <class F, size_t... I>
  __device__ void visit(const T (&x)[inputs][window], std::int64_t k, F& f,
                        std::index_sequence<I...>) const {
#pragma unroll
    for (int w = 0; w < window; ++w)
      if (k + w * blockDim.y < n_) f(column_ + k + w * blockDim.y, widen(x[I][w])...);
  }

  // Of those with threadIdx.y < count, a power of two.
  template <class Op, class A>
  __device__ static A over_block(Op op, A a, int count, A* partial) {
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    partial[me] = a;
    for (int half = count / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) partial[me] = op(partial[me], partial[me + half * blockDim.x]);
    }
    __syncthreads();
    return partial[threadIdx.x];
  }
  // Two turns of `told_`: before one is written again, all have read it.
  template <class Op, class A>
  __device__ A over_slices(Op op, A a, A* partial) {
    const auto slices = static_cast<unsigned>(s_.slices);
    const bool inside = slot_ < s_.lines();
    double* const told = told_ + turn_ * slices * s_.lines() + slot_;
    turn_ ^= 1;
    if (inside && threadIdx.y == 0) told[blockIdx.y * s_.lines()] = static_cast<double>(a);
    cooperative_groups::this_grid().sync();
    if (inside && threadIdx.y < slices) {
      a = static_cast<A>(told[threadIdx.y * s_.lines()]);
      for (unsigned s = threadIdx.y + blockDim.y; s < slices; s += blockDim.y)
        a = op(a, static_cast<A>(told[s * s_.lines()]));
    }
    return over_block(op, a, static_cast<int>(min(slices, blockDim.y)), partial);
  }

  const LineLayout& s_;
  std::int64_t inner_;
  double* told_;
  std::int64_t slot_;
  const T* x_[inputs];
  std::int64_t n_;
  std::int64_t index_;
  std::int64_t offset_;
  std::int64_t column_;  // first one of the slice
  int turn_ = 0;
  bool leader_;
};

template <class T, bool shared, class Body, class... X>
__global__ void __launch_bounds__(strided_threads)
    strided_rows_kernel(Body body, const __grid_constant__ LineLayout layout, double* told,
                        const X*... x) {
  const T* const from[] = {x...};
  StridedRow<T, sizeof...(X), shared> row(layout, told, from);
  body(row);
}

// Blocks that each line of a full warp of them can have at one time, a power of two; 1 where that
// is of no use.
inline std::int64_t blocks_of_line(const LineLayout& s, unsigned across) {
  constexpr std::int64_t shortest = 512;  // slice
  constexpr std::int64_t fewest = 8;      // that are worth their waiting for each other
  const std::int64_t tiles = divide_up<std::int64_t>(s.lines(), across);
  if (s.slices > 1 || tiles == 0 || multiprocessors() < multiprocessors_used) return 1;
  std::int64_t blocks = 1;
  while (tiles * blocks * 2 <= multiprocessors_used && s.n >= 2 * blocks * shortest) blocks *= 2;
  return blocks < fewest ? 1 : blocks;
}

// Where there are few lines, all blocks share them; or a block has as few of them as memory reads
// at once, but all threads.
template <class T, class Body, class... X>
void strided_rows(std::string_view op, const Body& body, LineLayout s, Device device,
                  const X*... x) {
  constexpr unsigned sector = 32 / sizeof(T);
  const auto blocks = [&](unsigned across) { return divide_up<std::int64_t>(s.lines(), across); };
  unsigned across = 32;
  while (across > 1 && across / 2 >= s.inner) across /= 2;
  const std::int64_t sharing = blocks_of_line(s, across);
  if (sharing > 1) {
    s = {s.outer, s.n, s.inner, sharing, divide_up(s.n, sharing)};
    Tensor told = empty({2, sharing, s.lines()}, {Dtype::f64, device});
    const dim3 grid(static_cast<unsigned>(blocks(across)), static_cast<unsigned>(sharing));
    return launch_together(op, strided_rows_kernel<T, true, Body, X...>,
                           {grid, dim3(across, strided_threads / across)}, body, s,
                           told.data<double>(), x...);
  }
  while (across > sector && blocks(across) * s.slices < strided_blocks) across /= 2;
  const bool few = blocks(across) * s.slices < 2 * strided_blocks;
  unsigned along = (few ? strided_threads : 256) / across;
  while (along > 1 && along * 2 > s.chunk) along /= 2;  // two elements a thread, or more
  launch(op, strided_rows_kernel<T, false, Body, X...>,
         dim3(static_cast<unsigned>(blocks(across)), static_cast<unsigned>(s.slices)),
         dim3(across, along), 0, body, s, static_cast<double*>(nullptr), x...);
}

}  // namespace ebb::gpu
