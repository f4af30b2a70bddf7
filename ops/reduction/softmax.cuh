// The two numbers that softmax, its logarithm and cross-entropy need of a row.
#pragma once
#include "ebb/ops/long_rows.cuh"
#include "ebb/ops/reduction/axes.h"
#include "ebb/ops/strided_rows.cuh"

namespace ebb::gpu {

// e^x of f32 as 2^(x log2 e): beside the library's 2 ulp an error of |x| / 2^24, which where x <= 0
// is less than that of rounding 1, in half the instructions.
__device__ inline float power_of_e(float x) { return exp2f(x * log2_e); }
__device__ inline double power_of_e(double x) { return exp(x); }

// The same as a term of a sum of at least 1, where it may as well be 0 when it is denormal.
__device__ inline float term_of_e(float x) { return power_of_two(x * log2_e); }
__device__ inline double term_of_e(double x) { return exp(x); }

// exp(x − max) · scale. What is to be rounded to bf16 is 2^24 times too large before it is scaled:
// so a denormal result costs nothing, and the 24 leave it right to 2^-20.
template <class T>
struct Powers {
  using C = Compute<T>;
  C max;
  C scale;

  __device__ C operator()(C x) const {
    if constexpr (!std::is_same_v<T, bf16>)
      return power_of_e(x - max) * scale;
    else
      return power_of_two(fmaf(x - max, log2_e, 24)) * (0x1p-24f * scale);
  }
};

template <class C>
struct MaxAndSum {
  C max;
  C sum;  // Σ exp(x − max)
};

// Reads the row once: a thread's sum so far is rescaled whenever a window raises its maximum. −inf
// adds nothing, and must not meet a maximum of −inf; if there is nothing else, x − max makes the
// row NaN at the end. A NaN is no maximum, but makes the sum NaN.
template <class C, class Row>
__device__ MaxAndSum<C> max_and_sum(Row& row) {
  constexpr C lowest = -std::numeric_limits<C>::infinity();
  C mine = lowest;
  typename Row::Wide sum = 0;
  row.windows_and_largest([&](auto visit, C largest) {
    const C top = fmax(mine, largest);
    if (top > mine) sum *= power_of_e(mine - top);
    mine = top;
    const C base = top == lowest ? C(0) : top;
    C part = 0;
    visit([&](auto, C x) { part += term_of_e(x - base); });
    sum += part;
  });
  const C max = row.reduce(Max{}, mine);
  sum = row.reduce(Sum{}, sum == 0 ? 0 : sum * power_of_e(mine - max));
  return {max, static_cast<C>(sum)};
}

// The body on every line of x along v.n.
template <class T, class Body, class... X>
void lines(std::string_view op, const Body& body, const View& v, Device device, const X*... x) {
  if (v.n == 0) return;
  if constexpr (sizeof(T) <= 4) {
    constexpr std::int64_t longest = (sizeof...(X) == 1 ? 2 : 4) * long_row_bytes;  // kept
    if (v.inner == 1 && v.n * std::int64_t{sizeof(T)} > longest &&
        long_rows<T>(op, body, v.outer, v.n, x...))
      return;
  }
  if (v.inner == 1) return keep_rows<T>(op, body, v.outer, v.n, x...);
  strided_rows<T>(op, body, {v.outer, v.n, v.inner}, device, x...);
}

// Of tensors, by the body Body<T>{y}.
template <template <class> class Body, class... X>
void lines(std::string_view op, const View& v, Tensor& y, const X&... x) {
  visit<float, double, bf16>(y.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    lines<T>(op, Body<T>{y.data<T>()}, v, y.device(), x.template data<T>()...);
  });
}

}  // namespace ebb::gpu
