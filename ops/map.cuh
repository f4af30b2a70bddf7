// Element-wise maps on the GPU: y[i] = f(x[i], …).
//
//   struct Square { template <class T> __device__ T operator()(T x) const { return x * x; } };
//   map("square", Square{}, y, x);                                  tensors of one dtype
//   map<T>("square", Square{}, n, y, x);                            pointers
//   map<Silu>("silu", y, x);                                        Silu<T>{}: a formula for each T
//
// A formula with several results returns them as Values<T, n>, and goes to several outputs:
//
//   map<SwigluGradients>("swiglu", std::tie(dgate, dup), gate, up, dy);
//
// A thread maps one pack of 16 bytes, a block one contiguous tile: with full multiprocessors enough
// bytes are in flight, and the smaller the tiles, the closer together lie those that run at a time.
// More packs a thread were slower on an H200, and so were hints to the caches; but a small map of
// one operand is over before that counts, and two packs need fewer blocks. A formula that takes
// long may ask for more by its own `packs`. The last tile goes element by element.
#pragma once
#include <tuple>
#include <utility>

#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"

namespace ebb::gpu {

inline constexpr int map_threads = 256;

template <class T, int n>
struct Pointers {
  T* p[n];
};

template <class T, int n>
struct Values {
  T v[n];
};

// 1 / x within 1 ulp, denormals and infinities included: 4 instructions where division takes 10
// and a branch. For formulas on f32 and bf16 that a division would make slower than memory.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline double reciprocal(double x) { return 1 / x; }

// 2ˣ and eˣ, as exactly as results of type T keep them: 5e-6 of them off is nothing to bf16.
template <class T>
__device__ Compute<T> exponential_of_2(Compute<T> x) {
  if constexpr (std::is_same_v<T, bf16>) return power_of_two(x);
  return exp2(x);
}
template <class T>
__device__ Compute<T> exponential(Compute<T> x) {
  if constexpr (std::is_same_v<T, bf16>) return power_of_two(x * log2_e);
  return exp(x);
}

__device__ inline std::uint8_t widen(std::uint8_t x) { return x; }

// Result k of a formula.
template <class T>
__device__ T result(T value, int) {
  return value;
}
template <class T, int n>
__device__ T result(const Values<T, n>& values, int k) {
  return values.v[k];
}

// f of one element of every input, narrowed to one of every output.
template <class T, int outputs, class F, int inputs, size_t... I>
__device__ Values<T, outputs> apply(const F& f, const Values<T, inputs>& x,
                                    std::index_sequence<I...>) {
  const auto values = f(widen(x.v[I])...);
  Values<T, outputs> y;
#pragma unroll
  for (int k = 0; k < outputs; ++k) y.v[k] = narrow<T>(result(values, k));
  return y;
}

template <class T, int packs, int outputs, int inputs, class F>
__global__ void __launch_bounds__(map_threads)
    map_kernel(F f, std::int64_t n, Pointers<T, outputs> y, Pointers<const T, inputs> x) {
  constexpr int width = pack_size<T>;
  constexpr std::int64_t tile = std::int64_t{map_threads} * packs * width;
  using P = Pack<T, width>;
  const auto one = [&](const auto& element) {
    Values<T, inputs> in;
#pragma unroll
    for (int i = 0; i < inputs; ++i) in.v[i] = element(i);
    return apply<T, outputs>(f, in, std::make_index_sequence<inputs>());
  };
  const std::int64_t start = blockIdx.x * tile;
  // What is rare stands in the `if`: the compiler puts that behind the rest, and a small map need
  // not wait for instructions from beyond it.
  if (start + tile > n) {
    const std::int64_t end = n < start + tile ? n : start + tile;
    for (std::int64_t i = start + threadIdx.x; i < end; i += map_threads) {
      const Values<T, outputs> value = one([&](int k) { return x.p[k][i]; });
#pragma unroll
      for (int o = 0; o < outputs; ++o) y.p[o][i] = value.v[o];
    }
    return;
  }
  P in[packs][inputs];
#pragma unroll
  for (int k = 0; k < packs; ++k)
#pragma unroll
    for (int i = 0; i < inputs; ++i)
      in[k][i] = reinterpret_cast<const P*>(x.p[i] + start)[k * map_threads + threadIdx.x];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    P out[outputs];
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const Values<T, outputs> value = one([&](int i) { return in[k][i].v[j]; });
#pragma unroll
      for (int o = 0; o < outputs; ++o) out[o].v[j] = value.v[o];
    }
#pragma unroll
    for (int o = 0; o < outputs; ++o)
      store(reinterpret_cast<P*>(y.p[o] + start) + k * map_threads + threadIdx.x, out[o]);
  }
}

template <class T, class F, int outputs, class... X>
void map(std::string_view op, const F& f, std::int64_t n, Pointers<T, outputs> y, const X*... x) {
  static_assert((std::is_same_v<T, X> && ...), "a map is over one dtype");
  constexpr int inputs = sizeof...(X);
  constexpr std::int64_t small = 32 << 20;  // bytes
  constexpr int large = [] {                // packs a thread
    if constexpr (requires { F::packs; }) return F::packs;
    return 1;
  }();
  const auto go = [&]<int packs>() {
    constexpr std::int64_t tile = std::int64_t{map_threads} * packs * pack_size<T>;
    launch(op, map_kernel<T, packs, outputs, inputs, F>,
           dim3(static_cast<unsigned>(divide_up(n, tile))), map_threads, 0, f, n, y,
           Pointers<const T, inputs>{{x...}});
  };
  if constexpr (inputs == 1)
    if (n * std::int64_t{sizeof(T)} <= small) return go.template operator()<2>();
  go.template operator()<large>();
}

template <class T, class F, class... X>
void map(std::string_view op, const F& f, std::int64_t n, T* y, const X*... x) {
  map<T>(op, f, n, Pointers<T, 1>{{y}}, x...);
}

// Of tensors, by the formula make(T{}).
template <class Make, class... Y, class... X>
void map_tensors(std::string_view op, const Make& make, const std::tuple<Y&...>& y, const X&... x) {
  visit<float, double, bf16>(std::get<0>(y).dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const auto to = [](auto&... t) { return Pointers<T, sizeof...(Y)>{{t.template data<T>()...}}; };
    map<T>(op, make(zero), std::get<0>(y).numel(), std::apply(to, y), x.template data<T>()...);
  });
}
template <class F, class... Y, class... X>
void map(std::string_view op, const F& f, const std::tuple<Y&...>& y, const X&... x) {
  map_tensors(
      op, [&](auto) { return f; }, y, x...);
}
template <class F, class... X>
void map(std::string_view op, const F& f, Tensor& y, const X&... x) {
  map(op, f, std::tie(y), x...);
}
template <template <class> class F, class... Y, class... X>
void map(std::string_view op, const std::tuple<Y&...>& y, const X&... x) {
  map_tensors(
      op, [](auto zero) { return F<decltype(zero)>(); }, y, x...);
}
template <template <class> class F, class... X>
void map(std::string_view op, Tensor& y, const X&... x) {
  map<F>(op, std::tie(y), x...);
}

}  // namespace ebb::gpu
