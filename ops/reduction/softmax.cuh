// The two numbers that softmax, its logarithm and cross-entropy need of a row.
#pragma once
#include "ebb/ops/reduction/axes.h"
#include "ebb/ops/rows.cuh"

namespace ebb::gpu {

template <class C>
struct MaxAndSum {
  C max;
  C sum;  // Σ exp(x − max)
};

// A row in registers is gone through twice. One that is read from memory each time is read once: a
// thread's sum so far is rescaled whenever its maximum grows. −inf adds nothing, and must not meet
// a maximum of −inf; if there is nothing else, the difference x − max makes the row NaN later.
template <class C, class Row>
__device__ MaxAndSum<C> max_and_sum(Row& row) {
  if constexpr (Row::in_registers) {
    const C max = row.max([](auto, C x) { return x; });
    return {max, row.sum([&](auto, C x) { return exp(x - max); })};
  } else {
    C mine = -std::numeric_limits<C>::infinity();
    double sum = 0;
    row.each([&](auto, C x) {
      if (x > mine) {
        sum = sum * exp(mine - x) + 1;
        mine = x;
      } else if (x != -std::numeric_limits<C>::infinity()) {
        sum += exp(x - mine);
      }
    });
    const C max = row.reduce(Max{}, mine);
    sum = row.reduce(Sum{}, sum == 0 ? 0 : sum * exp(mine - max));
    return {max, static_cast<C>(sum)};
  }
}

// The body on every line of x along v.n; y is what it writes.
template <class T, class Body, class... X>
void lines(std::string_view op, const Body& body, const View& v, const T* y, const X*... x) {
  if (v.n == 0) return;
  if (v.inner == 1) return keep_rows<T>(op, body, v.outer, v.n, y, x...);
  strided_rows<T>(op, body, v.outer, v.n, v.inner, x...);
}

}  // namespace ebb::gpu
