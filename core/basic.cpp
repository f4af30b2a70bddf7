#include "ebb/core/basic.h"

#include <cstring>
#include <limits>

#include "ebb/core/eigen.h"
#include "ebb/core/parallel.h"
#include "ebb/core/run.h"

namespace ebb {
namespace {

constexpr std::int64_t grain = 1 << 15;

// To integers: towards zero, to the nearest that there is, NaN to 0, as GPUs do. Comparing in f64
// is exact for every element type.
template <class To, class From>
To converted(From x) {
  if constexpr (std::is_same_v<From, bf16>) {
    return converted<To>(static_cast<float>(x));
  } else if constexpr (std::is_same_v<To, bf16>) {
    return bf16(static_cast<float>(x));
  } else if constexpr (std::is_integral_v<To> && !std::is_same_v<To, From>) {
    using Limits = std::numeric_limits<To>;
    const auto wide = static_cast<double>(x);
    if (!(wide > Limits::min())) return wide <= Limits::min() ? Limits::min() : To{0};
    return wide < Limits::max() ? static_cast<To>(wide) : Limits::max();
  } else {
    return static_cast<To>(x);
  }
}

template <class F>
void visit_any(Dtype dtype, std::string_view op, F&& f) {
  visit<float, double, bf16, std::int32_t, std::uint8_t>(dtype, op, f);
}

}  // namespace

void cpu::fill(double value, Tensor& y) {
  visit_any(y.dtype(), "fill", [&](auto zero) {
    using T = decltype(zero);
    T* out = y.data<T>();
    const T element = converted<T>(value);
    parallel_for(y.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
      std::fill(out + begin, out + end, element);
    });
  });
}

void cpu::convert(const Tensor& x, Tensor& y) {
  visit_any(x.dtype(), "to", [&](auto from_zero) {
    using From = decltype(from_zero);
    visit_any(y.dtype(), "to", [&](auto to_zero) {
      using To = decltype(to_zero);
      const From* in = x.data<From>();
      To* out = y.data<To>();
      parallel_for(x.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) out[i] = converted<To>(in[i]);
      });
    });
  });
}

void cpu::accumulate(const Tensor& x, Tensor& y) {
  visit<float, double>(x.dtype(), "accumulate", [&](auto zero) {
    using T = decltype(zero);
    const T* in = x.data<T>();
    T* out = y.data<T>();
    parallel_for(x.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
      array(out + begin, end - begin) += array(in + begin, end - begin);
    });
  });
}

void copy_bytes(void* to, Device to_device, const void* from, Device from_device,
                std::int64_t bytes) {
  if (bytes == 0) return;
  if (!to_device.is_cuda() && !from_device.is_cuda()) {
    parallel_for(bytes, std::int64_t{1} << 17, [=](std::int64_t begin, std::int64_t end) {
      std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                  static_cast<size_t>(end - begin));
    });
  } else if constexpr (has_cuda) {
    // Between two GPUs the copy is queued on the target's stream: what the source's stream still
    // has to do comes first.
    if (to_device.is_cuda() && from_device.is_cuda() && to_device != from_device)
      synchronize(from_device);
    gpu::use(to_device.is_cuda() ? to_device : from_device);
    gpu::copy_bytes(to, from, bytes, to_device != from_device);
  }
}

}  // namespace ebb
