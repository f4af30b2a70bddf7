// Column reductions on the GPU: sums over n of [outer, n, inner], a bias gradient, statistics of
// [N, C].
//
// A block of 32 × 8 threads owns a slice of n of 32 columns, or of 32 packs of columns where there
// are many rows. One slice is the whole sum; several leave partial sums [slices, count, columns] in
// double, which a second kernel adds in order. No atomics: the same bits at every run.
//
//   struct Terms {
//     struct Column { __device__ void add(const auto& rows, double (&sum)[1]) const … };
//     __device__ Column column(int64 c) const …   what it needs to know of a column
//   };
//   finish(column, sum)                           in one thread a column, sum as above
//   finish.add(op, slices, partial)               instead of that, on the host: the second stage
//
// `rows` are those of one column that a thread has in registers: rows.each([&](C x, …) {…}).
// A column is an outer · inner + inner place.
#pragma once
#include <algorithm>
#include <utility>

#include "ebb/core/tensor.h"
#include "ebb/ops/packs.cuh"
#include "ebb/ops/parts.cuh"

namespace ebb::gpu {

inline constexpr int column_lanes = 32;
inline constexpr int column_warps = 8;  // that share a block's columns

struct ColumnLayout {
  std::int64_t outer;
  std::int64_t n;
  std::int64_t inner;
  bool passing = false;  // as in load()
  std::int64_t slices = 1;
  std::int64_t chunk = n;  // of n, a slice

  __host__ __device__ std::int64_t columns() const { return outer * inner; }
};

// Element j of the packs that a thread holds: `inputs` of each of `most` rows, of which it has
// `count`, always the first ones.
template <class T, int inputs, int most, int width>
struct ColumnRows {
  const Pack<T, width> (&packs)[most][inputs];
  int j;
  int count;

  __device__ int size() const { return count; }
  __device__ Compute<T> first() const { return widen(packs[0][0], j); }

  template <class F>
  __device__ void each(F f) const {
    each(f, std::make_index_sequence<inputs>{});
  }

 private:
  template <class F, size_t... I>
  __device__ void each(F& f, std::index_sequence<I...>) const {
#pragma unroll
    for (int u = 0; u < most; ++u)
      if (u < count) f(widen(packs[u][I], j)...);
  }
};

// Each input's own sum, in C within a window.
template <class C>
struct InputSums {
  struct Column {
    template <class Rows, int count>
    __device__ void add(const Rows& rows, double (&sum)[count]) const {
      C window[count] = {};
      rows.each([&](auto... x) {
        int q = 0;
        ((window[q++] += x), ...);
      });
#pragma unroll
      for (int q = 0; q < count; ++q) sum[q] += static_cast<double>(window[q]);
    }
  };
  __device__ Column column(std::int64_t) const { return {}; }
};

// Adds what the warps of a block found and passes on to give(j, sum), in the threads of warp j.
template <int count, int width, class Give>
__device__ void add_warps(const double (&sum)[width][count], const Give& give) {
  constexpr int together = width < 4 ? width : 4;
  __shared__ double shared[together][count][column_warps][column_lanes];
#pragma unroll
  for (int from = 0; from < width; from += together) {
    if (from > 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < together; ++j)
#pragma unroll
      for (int q = 0; q < count; ++q) shared[j][q][threadIdx.y][threadIdx.x] = sum[from + j][q];
    __syncthreads();
    if (threadIdx.y >= together) continue;
    double total[count];
#pragma unroll
    for (int q = 0; q < count; ++q) {
      total[q] = shared[threadIdx.y][q][0][threadIdx.x];
#pragma unroll
      for (int w = 1; w < column_warps; ++w) total[q] += shared[threadIdx.y][q][w][threadIdx.x];
    }
    give(from + static_cast<int>(threadIdx.y), total);
  }
}

// Gives sums to `finish`, or to `partial` unless that is null.
template <class T, int count, int width, bool once, class Terms, class Finish, class... X>
__global__ void __launch_bounds__(column_lanes* column_warps)
    columns_kernel(Terms terms, Finish finish, double* partial, ColumnLayout s, const X*... x) {
  constexpr int inputs = sizeof...(X);
  constexpr int most = (width == 1 ? 16 : 8) / inputs;  // rows in flight a thread
  const std::int64_t tiles = divide_up<std::int64_t>(s.inner, column_lanes * width);
  const std::int64_t o = blockIdx.x / tiles;
  const std::int64_t i = (blockIdx.x - o * tiles) * (column_lanes * width) + threadIdx.x * width;
  const bool inside = i < s.inner;
  const std::int64_t column = o * s.inner + (inside ? i : 0);
  const std::int64_t first = blockIdx.y * s.chunk;
  const std::int64_t end = s.n < first + s.chunk ? s.n : first + s.chunk;
  const T* const from[] = {x + o * s.n * s.inner + i...};
  typename Terms::Column own[width];
  if constexpr (requires { terms.columns(column, own); })
    terms.columns(column, own);
  else
#pragma unroll
    for (int j = 0; j < width; ++j) own[j] = terms.column(column + j);
  double sum[width][count] = {};
  const auto add = [&](std::int64_t k, auto rows) {
    constexpr bool all = !std::is_same_v<decltype(rows), int>;
    // Places are added up one by one: were `step` known to stay the same, registers would keep them
    // all, and loads wait for one another for want of registers.
    std::int64_t place = k * s.inner, step = column_warps * s.inner;
    asm volatile("" : "+l"(step));
    Pack<T, width> in[most][inputs];
#pragma unroll
    for (int u = 0; u < most; ++u, place += step)
#pragma unroll
      for (int q = 0; q < inputs; ++q)
        in[u][q] = load_if<width>(all || u < rows, from[q] + place, once && s.passing);
#pragma unroll
    for (int j = 0; j < width; ++j)
      own[j].add(ColumnRows<T, inputs, most, width>{in, j, rows}, sum[j]);
  };
  for (std::int64_t k = first + threadIdx.y; inside && k < end; k += column_warps * most) {
    const std::int64_t left = divide_up<std::int64_t>(end - k, column_warps);
    if (left < most)
      add(k, static_cast<int>(left));
    else
      add(k, std::integral_constant<int, most>());
  }
  add_warps<count, width>(sum, [&](int j, const double(&total)[count]) {
    if (!inside) return;
    if constexpr (requires { finish(column, total); })
      if (!partial) return finish(column + j, total);
#pragma unroll
    for (int q = 0; q < count; ++q)
      partial[(blockIdx.y * count + q) * s.columns() + column + j] = total[q];
  });
}

template <int count, class Finish>
__global__ void __launch_bounds__(column_lanes* column_warps)
    add_slices_kernel(Finish finish, std::int64_t columns, std::int64_t slices,
                      const double* partial) {
  await_previous();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * column_lanes + threadIdx.x;
  const bool inside = i < columns;
  double sum[1][count] = {};
#pragma unroll 8
  for (std::int64_t s = threadIdx.y; s < (inside ? slices : 0); s += column_warps)
#pragma unroll
    for (int q = 0; q < count; ++q) sum[0][q] += partial[(s * count + q) * columns + i];
  add_warps<count, 1>(sum, [&](int, const double(&total)[count]) {
    if (inside) finish(i, total);
  });
}

template <int count, class Finish>
void add_slices(std::string_view op, const Finish& finish, std::int64_t columns,
                std::int64_t slices, const double* partial) {
  launch_next(op, add_slices_kernel<count, Finish>,
              dim3(static_cast<unsigned>(divide_up<std::int64_t>(columns, column_lanes))),
              dim3(column_lanes, column_warps), finish, columns, slices, partial);
}

// `once`: no second pass reads x again. Then it passes the caches, unless it is so large that this
// only costs time. The device's own number of multiprocessors does not enter, so that all GPUs add
// in one order.
template <class T, int count, bool once = false, class Terms, class Finish, class... X>
void columns(std::string_view op, const Terms& terms, const Finish& finish, ColumnLayout s,
             Device device, const X*... x) {
  constexpr std::int64_t few_rows = 512;  // that one block adds
  constexpr std::int64_t shortest = 64;   // slice
  constexpr std::int64_t most_slices = 512;
  constexpr std::int64_t blocks = 1024;                     // that fill every GPU
  constexpr std::int64_t far_more = std::int64_t{1} << 29;  // bytes, than caches keep
  if (s.columns() == 0) return;
  const bool far = s.columns() * s.n * std::int64_t{sizeof(T)} >= far_more;
  s.passing = once && !far && passes<T>(s.columns() * s.n);
  constexpr bool adds = requires(const double* p) { finish.add(op, s.slices, p); };
  const auto go = [&]<int width>() {
    const std::int64_t tiles = s.outer * divide_up<std::int64_t>(s.inner, column_lanes * width);
    const std::int64_t wanted = once && far ? 2 * blocks : once || adds ? blocks / 2 : blocks;
    std::int64_t slices = s.n <= few_rows && !adds ? 1 : divide_up(wanted, tiles);
    slices = std::min({slices, divide_up(s.n, shortest), most_slices});
    s.chunk = slices <= 1 ? s.n : divide_up(s.n, slices);
    s.slices = slices <= 1 ? 1 : divide_up(s.n, s.chunk);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(s.slices));
    const dim3 block(column_lanes, column_warps);
    Tensor partial;
    if (adds || s.slices > 1) partial = empty({s.slices, count, s.columns()}, {Dtype::f64, device});
    double* const to = partial.defined() ? partial.data<double>() : nullptr;
    launch(op, columns_kernel<T, count, width, once, Terms, Finish, X...>, grid, block, 0, terms,
           finish, to, s, x...);
    if constexpr (adds)
      finish.add(op, s.slices, to);
    else if (to)
      add_slices<count>(op, finish, s.columns(), s.slices, to);
  };
  constexpr int width = pack_size<T>;
  const bool large = adds || s.n > few_rows || s.columns() >= blocks * column_lanes * width;
  if (large && s.inner % width == 0) return go.template operator()<width>();
  go.template operator()<1>();
}

}  // namespace ebb::gpu
