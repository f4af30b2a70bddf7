// Sums of few long rows on the GPU: rows cut into slices that fill the GPU, whose sums are rows of
// a second stage. The numbers are fixed, so that every GPU adds in the same order.
#pragma once
#include "ebb/core/tensor.h"
#include "ebb/ops/rows.cuh"

namespace ebb::gpu {

// n elements are one slice unless there are fewer than 512 rows of more than 16384.
inline RowLayout slice_rows(std::int64_t rows, std::int64_t n) {
  constexpr std::int64_t enough_rows = 512;
  constexpr std::int64_t shortest = 16384;
  constexpr std::int64_t most_slices = 2048;
  if (rows == 0 || rows >= enough_rows || n <= shortest) return {rows, n, 1, n};
  const std::int64_t slice = divide_up(n, divide_up(most_slices, rows));
  const std::int64_t chunk = divide_up<std::int64_t>(slice > shortest ? slice : shortest, 8) * 8;
  return {rows, n, divide_up(n, chunk), chunk};
}

// Σ f(x…) of a slice in double, whatever the inputs: squares of f32 neither overflow nor vanish.
template <class F, class Finish>
struct SumSlice {
  F f;
  Finish finish;

  template <class Row>
  __device__ void operator()(Row& row) const {
    double total = 0;
    row.each([&](auto, auto... x) { total += f(static_cast<double>(x)...); });
    total = row.reduce(Sum{}, total);
    if (row.leader()) finish(row.index(), total);
  }
};

struct KeepTotal {
  double* partial;
  __device__ void operator()(std::int64_t row, double total) const { partial[row] = total; }
};
struct Same {
  __device__ double operator()(double x) const { return x; }
};

// finish(row, Σ f(x…)) for each of `rows` rows of n.
template <class T, class F, class Finish, class... X>
void sum_slices(std::string_view op, const F& f, const Finish& finish, std::int64_t rows,
                std::int64_t n, Device device, const X*... x) {
  const RowLayout layout = slice_rows(rows, n);
  if (layout.slices == 1)
    return stream_rows<T>(op, SumSlice<F, Finish>{f, finish}, layout, nullptr, x...);
  Tensor partial = empty({rows, layout.slices}, {Dtype::f64, device});
  double* sums = partial.data<double>();
  stream_rows<T>(op, SumSlice<F, KeepTotal>{f, {sums}}, layout, nullptr, x...);
  stream_rows<double>(op, SumSlice<Same, Finish>{{}, finish}, {rows, layout.slices}, nullptr,
                      static_cast<const double*>(sums));
}

}  // namespace ebb::gpu
