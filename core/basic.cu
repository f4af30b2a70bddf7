#include "ebb/core/basic.h"
#include "ebb/core/cuda.cuh"

namespace ebb {
namespace {

constexpr int threads = 256;
constexpr std::int64_t max_blocks = 1 << 16;

// One thread an element, in strides of the whole grid when there are more.
dim3 grid_for(std::int64_t n) {
  return dim3(
      static_cast<unsigned>(std::min(gpu::divide_up<std::int64_t>(n, threads), max_blocks)));
}

__device__ std::int64_t first_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ std::int64_t stride() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

template <class To, class From>
__device__ To converted(From x) {
  if constexpr (std::is_same_v<From, bf16>) {
    return converted<To>(gpu::widen(x));
  } else if constexpr (std::is_same_v<To, bf16>) {
    return gpu::narrow<bf16>(static_cast<float>(x));
  } else if constexpr (std::is_integral_v<To>) {
    if (x != x) return 0;  // the conversion below makes the smallest integer of a NaN
    const int saturated = __double2int_rz(x);
    return std::is_same_v<To, std::uint8_t> ? min(max(saturated, 0), 255) : saturated;
  } else {
    return static_cast<To>(x);
  }
}

template <class T>
__global__ void fill_kernel(double value, T* y, std::int64_t n) {
  const T element = converted<T>(value);
  for (std::int64_t i = first_index(); i < n; i += stride()) y[i] = element;
}

template <class From, class To>
__global__ void convert_kernel(const From* x, To* y, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) y[i] = converted<To>(x[i]);
}

template <class X, class Y>
__global__ void accumulate_kernel(const X* x, Y* y, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride())
    y[i] = gpu::narrow<Y>(gpu::widen(y[i]) + gpu::widen(x[i]));
}

template <class F>
void visit_any(Dtype dtype, std::string_view op, F&& f) {
  visit<float, double, bf16, std::int32_t, std::uint8_t>(dtype, op, f);
}

}  // namespace

void gpu::fill(double value, Tensor& y) {
  visit_any(y.dtype(), "fill", [&](auto zero) {
    using T = decltype(zero);
    launch("fill", fill_kernel<T>, grid_for(y.numel()), threads, 0, value, y.data<T>(), y.numel());
  });
}

void gpu::convert(const Tensor& x, Tensor& y) {
  visit_any(x.dtype(), "to", [&](auto from) {
    using From = decltype(from);
    visit_any(y.dtype(), "to", [&](auto to) {
      using To = decltype(to);
      launch("to", convert_kernel<From, To>, grid_for(x.numel()), threads, 0, x.data<From>(),
             y.data<To>(), x.numel());
    });
  });
}

void gpu::accumulate(const Tensor& x, Tensor& y) {
  const auto add = [&]<class X, class Y>(const X* from, Y* to) {
    launch("accumulate", accumulate_kernel<X, Y>, grid_for(x.numel()), threads, 0, from, to,
           x.numel());
  };
  visit<float, double, bf16>(x.dtype(), "accumulate", [&](auto zero) {
    using T = decltype(zero);
    if (x.dtype() == Dtype::bf16 && y.dtype() == Dtype::f32)
      add(x.data<bf16>(), y.data<float>());
    else
      add(x.data<T>(), y.data<T>());
  });
}

}  // namespace ebb
