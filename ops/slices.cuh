// Sums of few long rows on the GPU: rows cut into slices that fill the GPU, whose sums are rows of
// a second stage. The numbers are fixed, so that every GPU adds in the same order.
#pragma once
#include "ebb/core/tensor.h"
#include "ebb/ops/parts.cuh"
#include "ebb/ops/rows.cuh"

namespace ebb::gpu {

// n elements are one slice unless there are fewer than 512 rows of more than `shortest`.
inline RowLayout slice_rows(std::int64_t rows, std::int64_t n, std::int64_t shortest = 16384,
                            std::int64_t most_slices = 2048) {
  constexpr std::int64_t enough_rows = 512;
  if (rows == 0 || rows >= enough_rows || n <= shortest) return {rows, n, 1, n};
  const std::int64_t slice = divide_up(n, divide_up(most_slices, rows));
  const std::int64_t chunk = divide_up<std::int64_t>(slice > shortest ? slice : shortest, 8) * 8;
  return {rows, n, divide_up(n, chunk), chunk};
}

// The same for what no cache keeps: cut to what a block loads at once.
template <class T>
RowLayout slices_to_add(std::int64_t rows, std::int64_t n) {
  constexpr std::int64_t most_slices = 16384;  // that one block adds up in a few microseconds
  if (!passes<T>(rows * n)) return slice_rows(rows, n);
  return slice_rows(rows, n, 1024 * pack_size<T>, most_slices);
}

// What is added up.
struct Product {
  __device__ double operator()(double a, double b) const { return a * b; }
};
struct Square {
  __device__ double operator()(double x) const { return x * x; }
};
struct Same {};

// Σ f(x…) of a window: visit(g) calls g(x…) for its elements. Products in double, whatever the
// inputs: squares of f32 neither overflow nor vanish.
template <class T, class F, class Visit>
__device__ double window_sum([[maybe_unused]] const F& f, const Visit& visit) {
  std::conditional_t<std::is_same_v<F, Same>, Compute<T>, double> sum = 0;
  visit([&](auto... x) {
    if constexpr (std::is_same_v<F, Same>)
      sum += (x + ...);
    else
      sum += f(static_cast<double>(x)...);
  });
  return sum;
}

// finish(slice, Σ f(x…)) by the row engine.
template <class T, class F, class Finish>
struct SumSlice {
  F f;
  Finish finish;

  template <class Row>
  __device__ void operator()(Row& row) const {
    double total = 0;
    row.windows([&](auto visit) {
      total += window_sum<T>(f, [&](auto g) { visit([&](auto, auto... x) { g(x...); }); });
    });
    total = row.reduce(Sum{}, total);
    if (row.leader()) finish(row.index(), total);
  }
};

// The same for slices that a block loads at once, two packs a thread: the more threads share a
// slice, the closer together lie the loads that run at a time, but each has its part of the
// reduction too. Blocks are slices × rows.
template <class T, int threads, int packs, bool passing, class F, class Finish, class... X>
__global__ void __launch_bounds__(threads)
    add_slice_kernel(F f, Finish finish, std::int64_t n, std::int64_t chunk, const X*... x) {
  constexpr int inputs = sizeof...(X);
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const std::int64_t first = blockIdx.x * chunk;
  const std::int64_t rest = n - first;
  const int left = static_cast<int>(rest < chunk ? rest : chunk);
  const T* const from[] = {x + blockIdx.y * n + first...};
  P in[packs][inputs];
#pragma unroll
  for (int k = 0; k < packs; ++k)
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      const int at = (k * threads + threadIdx.x) * width;
      in[k][i] = load_if<width>(at < left, from[i] + at, passing);
    }
  const auto visit = [&](auto g) {
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j) {
        if constexpr (inputs == 1)
          g(widen(in[k][0], j));
        else
          g(widen(in[k][0], j), widen(in[k][1], j));
      }
  };
  const double sum = block_reduce_to_first<threads>(window_sum<T>(f, visit), Sum{});
  if (threadIdx.x == 0) finish(std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x, sum);
}

// finish(slice, Σ f(x…)) for each slice. Where there is far more to read than the caches keep, it
// is not worth while to pass them.
template <class T, class F, class Finish, class... X>
void sum_each(std::string_view op, const F& f, const Finish& finish, const RowLayout& s,
              const X*... x) {
  constexpr std::int64_t far_more = std::int64_t{1} << 29;
  const std::int64_t elements = s.rows * s.cols;
  const std::int64_t packs = divide_up<std::int64_t>(s.chunk, pack_size<T>);
  if (packs <= 256 || packs > 2048 || !passes<T>(elements) || !rows_are_packed<T>(s))
    return stream_rows<T>(op, SumSlice<T, F, Finish>{f, finish}, s, x...);
  const bool passing = elements * static_cast<std::int64_t>(sizeof...(X) * sizeof(T)) < far_more;
  const bool whole = s.slices == 1;  // rows are slices of one
  const dim3 grid(static_cast<unsigned>(whole ? s.rows : s.slices), whole ? 1 : s.rows);
  const auto go = [&]<int threads, int k>() {
    const auto kernel = passing ? add_slice_kernel<T, threads, k, true, F, Finish, X...>
                                : add_slice_kernel<T, threads, k, false, F, Finish, X...>;
    launch(op, kernel, grid, threads, 0, f, finish, whole ? elements : s.cols, s.chunk, x...);
  };
  constexpr int per_thread = 2 / sizeof...(X);
  if (packs <= 512) return go.template operator()<512 / per_thread, per_thread>();
  if (packs <= 1024) return go.template operator()<1024 / per_thread, per_thread>();
  go.template operator()<1024, 2>();
}

struct KeepTotal {
  double* partial;
  __device__ void operator()(std::int64_t row, double total) const { partial[row] = total; }
};

// finish(row, Σ f(x…)) for each of `rows` rows of n.
template <class T, class F, class Finish, class... X>
void sum_slices(std::string_view op, const F& f, const Finish& finish, std::int64_t rows,
                std::int64_t n, Device device, const X*... x) {
  const RowLayout layout = slices_to_add<T>(rows, n);
  if (layout.slices == 1) return sum_each<T>(op, f, finish, layout, x...);
  Tensor partial = empty({rows, layout.slices}, {Dtype::f64, device});
  double* sums = partial.data<double>();
  sum_each<T>(op, f, KeepTotal{sums}, layout, x...);
  add_parts(op, finish, rows, layout.slices, sums);
}

}  // namespace ebb::gpu
