// The steps that bodies of rows.cuh take, for any Row that has
//
//   windows(f)            f(visit) for each window of elements, where visit(g) calls g(column, x…)
//                         for each of this thread's
//   reduce(op, a)         of the row's threads, to all of them
//   write_packs(y, pack)  y[row, column] = pack(first column of a pack)(j, column, x…); or write()
#pragma once
#include <limits>

#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

// Windows are added up in Compute<T>, and together in Wide_.
template <class Row, class T, class Wide_ = double>
class RowSteps {
 public:
  using C = Compute<T>;
  using Wide = Wide_;
  // Whether blocks of all rows wait for each other to reduce: then each must do it as often.
  static constexpr bool of_grid = false;

  // f(column, x…) for each element this thread sees.
  template <class F>
  __device__ void each(F f) {
    static_cast<Row&>(*this).windows([&](auto visit) { visit(f); });
  }
  // windows() that come with the largest number of one input: f(visit, largest)
  template <class F>
  __device__ void windows_and_largest(F f) {
    static_cast<Row&>(*this).windows([&](auto visit) {
      C largest = -std::numeric_limits<C>::infinity();
      visit([&](auto, C x) { largest = fmax(largest, x); });
      f(visit, largest);
    });
  }
  template <class F>
  __device__ C max(F f) {
    C m = -std::numeric_limits<C>::infinity();
    each([&](auto col, auto... x) { m = Max{}(f(col, x...), m); });
    return static_cast<Row&>(*this).reduce(Max{}, m);
  }
  template <class Total = C, class F>
  __device__ Total sum(F f) {
    using A = std::conditional_t<std::is_same_v<Total, double>, double, Wide>;
    A total = 0;
    static_cast<Row&>(*this).windows([&](auto visit) {
      C part = 0;
      visit([&](auto col, auto... x) { part += f(col, x...); });
      total += part;
    });
    return static_cast<Total>(static_cast<Row&>(*this).reduce(Sum{}, total));
  }
  // y[row, column] = f(column, x…)
  template <class F>
  __device__ void write(T* y, F f) {
    static_cast<Row&>(*this).write_packs(
        y, [&](auto) { return [&](int, auto col, auto... x) { return f(col, x...); }; });
  }
};

}  // namespace ebb::gpu
