#include "ebb/core/basic.h"
#include "ebb/core/cuda.cuh"

namespace ebb {
namespace {

constexpr int threads = 256;
constexpr int packs = 4;  // a thread, all in flight together

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

struct Assignment {
  double value;
  template <class Y>
  __device__ void operator()(Y& y, const Y&) const {
    y = converted<Y>(value);
  }
};
struct Conversion {
  template <class Y, class X>
  __device__ void operator()(Y& y, const X& x) const {
    y = converted<Y>(x);
  }
};
struct Accumulation {
  template <class Y, class X>
  __device__ void operator()(Y& y, const X& x) const {
    y = gpu::narrow<Y>(gpu::widen(y) + gpu::widen(x));
  }
};

// 16 bytes of the wider type.
template <class X, class Y>
constexpr int width = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));

// f(y[i], x[i]); what f does not use is not read. By packs, but the last tile element by element.
template <class F, class X, class Y>
__global__ void __launch_bounds__(threads) update_kernel(F f, const X* x, Y* y, std::int64_t n) {
  constexpr int w = width<X, Y>;
  constexpr std::int64_t tile = std::int64_t{threads} * packs * w;
  const std::int64_t start = blockIdx.x * tile;
  if (start + tile > n) {
    const std::int64_t end = start + tile < n ? start + tile : n;
    for (std::int64_t i = start + threadIdx.x; i < end; i += threads) f(y[i], x[i]);
    return;
  }
  const auto* const from = reinterpret_cast<const gpu::Pack<X, w>*>(x + start) + threadIdx.x;
  auto* const to = reinterpret_cast<gpu::Pack<Y, w>*>(y + start) + threadIdx.x;
  gpu::Pack<X, w> in[packs];
  gpu::Pack<Y, w> out[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    in[k] = from[k * threads];
    out[k] = to[k * threads];
  }
#pragma unroll
  for (int k = 0; k < packs; ++k) {
#pragma unroll
    for (int j = 0; j < w; ++j) f(out[k].v[j], in[k].v[j]);
    gpu::store(to + k * threads, out[k]);
  }
}

template <class F, class X, class Y>
void update(std::string_view op, const F& f, const X* x, Y* y, std::int64_t n) {
  const auto blocks = gpu::divide_up<std::int64_t>(n, threads * packs * width<X, Y>);
  gpu::launch(op, update_kernel<F, X, Y>, dim3(static_cast<unsigned>(blocks)), threads, 0, f, x, y,
              n);
}

template <class F>
void visit_any(Dtype dtype, std::string_view op, F&& f) {
  visit<float, double, bf16, std::int32_t, std::uint8_t>(dtype, op, f);
}

}  // namespace

void gpu::fill(double value, Tensor& y) {
  visit_any(y.dtype(), "fill", [&](auto zero) {
    using T = decltype(zero);
    update("fill", Assignment{value}, static_cast<const Tensor&>(y).data<T>(), y.data<T>(),
           y.numel());
  });
}

void gpu::convert(const Tensor& x, Tensor& y) {
  visit_any(x.dtype(), "to", [&](auto from) {
    using From = decltype(from);
    visit_any(y.dtype(), "to", [&](auto to) {
      using To = decltype(to);
      update("to", Conversion{}, x.data<From>(), y.data<To>(), x.numel());
    });
  });
}

void gpu::accumulate(const Tensor& x, Tensor& y) {
  const auto add = [&]<class X, class Y>(const X* from, Y* to) {
    update("accumulate", Accumulation{}, from, to, x.numel());
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
