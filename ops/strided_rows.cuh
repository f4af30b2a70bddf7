// Lines along a dimension that is not the last, on the GPU: the bodies of rows.cuh for
// [outer, n, inner] along n.
#pragma once
#include <utility>

#include "ebb/ops/row_steps.cuh"

namespace ebb::gpu {

// One (outer, inner) pair; blockDim.x neighbouring pairs a block, blockDim.y threads on each, both
// powers of two.
template <class T, int inputs>
class StridedRow : public RowSteps<StridedRow<T, inputs>, T> {
 public:
  using C = Compute<T>;

  __device__ StridedRow(std::int64_t outer, std::int64_t n, std::int64_t inner,
                        const T* const (&x)[inputs])
      : n_(n), inner_(inner) {
    const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool inside = slot < outer * inner;
    index_ = inside ? slot : 0;
    if (!inside) n_ = 0;
    leader_ = inside && threadIdx.y == 0;
    offset_ = index_ / inner * n * inner + index_ % inner;
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
  __device__ A reduce(Op op, A a) const {
    __shared__ A partial[256];
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    partial[me] = a;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) partial[me] = op(partial[me], partial[me + half * blockDim.x]);
    }
    __syncthreads();
    return partial[threadIdx.x];
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
    this->each([&](std::int64_t k, auto... x) { y[offset_ + k * inner_] = narrow<T>(f(k, x...)); });
  }

 private:
  static constexpr int window = 4;

  template <class F, size_t... I>
  __device__ void visit(const T (&x)[inputs][window], std::int64_t k, F& f,
                        std::index_sequence<I...>) const {
#pragma unroll
    for (int w = 0; w < window; ++w)
      if (k + w * blockDim.y < n_) f(k + w * blockDim.y, widen(x[I][w])...);
  }

  const T* x_[inputs];
  std::int64_t n_;
  std::int64_t inner_;
  std::int64_t index_;
  std::int64_t offset_;
  bool leader_;
};

template <class T, class Body, class... X>
__global__ void __launch_bounds__(256)
    strided_rows_kernel(Body body, std::int64_t outer, std::int64_t n, std::int64_t inner,
                        const X*... x) {
  const T* const from[] = {x...};
  StridedRow<T, sizeof...(X)> row(outer, n, inner, from);
  body(row);
}

template <class T, class Body, class... X>
void strided_rows(std::string_view op, const Body& body, std::int64_t outer, std::int64_t n,
                  std::int64_t inner, const X*... x) {
  unsigned across = 32;
  while (across > 1 && across / 2 >= inner) across /= 2;
  unsigned along = 256 / across;
  while (along > 1 && along / 2 >= n) along /= 2;
  const std::int64_t blocks = divide_up<std::int64_t>(outer * inner, across);
  launch(op, strided_rows_kernel<T, Body, X...>, dim3(static_cast<unsigned>(blocks)),
         dim3(across, along), 0, body, outer, n, inner, x...);
}

}  // namespace ebb::gpu
