#include "ebb/nn/multi_tensor.cuh"
#include "ebb/nn/optimizer.h"

namespace ebb::nn {
namespace {

using ebb::gpu::block_reduce;
using ebb::gpu::Compute;
using ebb::gpu::narrow;
using ebb::gpu::widen;
using gpu::chunk_threads;

// partial[block] = Σ g² of the block's chunk, in double.
template <class T>
__global__ void __launch_bounds__(chunk_threads)
    squares_kernel(const __grid_constant__ gpu::Table<T> table, double* partial) {
  const gpu::Place at = gpu::place_of(table, blockIdx.x);
  double sum = 0;
  for (std::int64_t i = at.begin + threadIdx.x; i < at.end; i += chunk_threads) {
    const double g = widen(static_cast<const T*>(table.data[0][at.tensor])[i]);
    sum += g * g;
  }
  sum = block_reduce<chunk_threads>(sum, ebb::gpu::Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(chunk_threads)
    root_kernel(const double* partial, std::int64_t n, T* norm) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += chunk_threads) sum += partial[i];
  sum = block_reduce<chunk_threads>(sum, ebb::gpu::Sum{});
  if (threadIdx.x == 0) *norm = static_cast<T>(sqrt(sum));
}

template <class T, class N>
struct Clip {
  const N* norm;
  double max_norm;
  double scale = 1;
  __device__ Clip loaded() const { return {norm, max_norm, max_norm / static_cast<double>(*norm)}; }
  __device__ bool changes_nothing() const { return !(scale < 1); }
  __device__ void operator()(double, T& g) const {
    g = narrow<T>(widen(g) * static_cast<Compute<T>>(scale));
  }
};

__global__ void begin_step_kernel(double rate, const double* rates, std::int64_t n, double beta1,
                                  double beta2, std::int32_t* count, StepNumbers* numbers) {
  const int t = ++*count;
  if (rates) rate = rates[(t < n ? t : n) - 1];
  *numbers = {rate, rate / (1 - pow(beta1, t)), 1 / sqrt(1 - pow(beta2, t))};
}

// Calls f(the tensors of type T, T{}) for each type that there is.
template <class F>
void for_each_type(const Tensors& tensors, F&& f) {
  const auto of_type = [&](auto zero) {
    Tensors some;
    for (const Tensor& t : tensors)
      if (t.dtype() == dtype_of<decltype(zero)>) some.push_back(t);
    if (!some.empty()) f(some, zero);
  };
  of_type(0.0f);
  of_type(0.0);
  of_type(bf16{});
}

}  // namespace

void gpu::begin_step(double rate, const Tensor& rates, double beta1, double beta2, Tensor& count,
                     Tensor& numbers) {
  const double* table = rates.defined() ? rates.data<double>() : nullptr;
  launch("optimizer", begin_step_kernel, 1, 1, 0, rate, table, table ? rates.numel() : 0, beta1,
         beta2, count.data<std::int32_t>(), static_cast<StepNumbers*>(numbers.raw()));
}

void gpu::multi_norm(const Tensors& tensors, Tensor& norm) {
  std::int64_t chunks = 0;
  for (const Tensor& t : tensors) chunks += chunks_of(t.numel());
  Tensor partial = empty({chunks}, {Dtype::f64, norm.device()});
  std::int64_t done = 0;
  for_each_type(tensors, [&](const Tensors& some, auto zero) {
    using T = decltype(zero);
    const std::int64_t first = done;
    for_each_table<T>({some}, {}, [&](const Table<T>& table, int n, std::int64_t before) {
      launch("clip_grad_norm", squares_kernel<T>, dim3(static_cast<unsigned>(n)), chunk_threads, 0,
             table, partial.data<double>() + first + before);
      done = first + before + n;
    });
  });
  visit<float, double>(norm.dtype(), "clip_grad_norm", [&](auto zero) {
    using N = decltype(zero);
    launch("clip_grad_norm", root_kernel<N>, 1, chunk_threads, 0, partial.data<double>(), chunks,
           norm.data<N>());
  });
}

void gpu::multi_clip(const Tensors& tensors, const Tensor& norm, double max_norm) {
  for_each_type(tensors, [&](const Tensors& some, auto zero) {
    using T = decltype(zero);
    visit<float, double>(norm.dtype(), "clip_grad_norm", [&](auto of_norm) {
      using N = decltype(of_norm);
      multi_map<T>("clip_grad_norm", Clip<T, N>{norm.data<N>(), max_norm}, {some});
    });
  });
}

}  // namespace ebb::nn
