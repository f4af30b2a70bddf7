// run<cpu::f, gpu::f>(device, arguments…) calls the twin for the device.
//
// Twins share one declared function type: `const Tensor&` are read, `Tensor&` are written. For CPU
// twins that know f32 and f64 only, bf16 tensors are widened to f32 and results rounded back, so
// that every op works in bf16 on the CPU too, with f32 arithmetic, as on the GPU. Most take bf16 as
// it is: run_as_is() calls them.
#pragma once
#include <tuple>
#include <type_traits>

#include "ebb/core/basic.h"
#include "ebb/core/device.h"
#include "ebb/core/tensor.h"

namespace ebb {

namespace gpu {
void use(Device device);  // makes it this thread's current device
}

namespace detail {

template <class A>
inline constexpr bool is_tensor = std::is_same_v<std::remove_cvref_t<A>, Tensor>;

// One argument of a twin, widened if it is bf16; a written one is rounded back on destruction.
template <class A>
struct Widened {
  A value;
};

struct WidenedInput {
  Tensor value;
  explicit WidenedInput(const Tensor& x)
      : value(x.defined() && x.dtype() == Dtype::bf16 ? x.detach().to(Dtype::f32) : x) {}
};

struct WidenedOutput {
  Tensor value;
  Tensor* original;
  explicit WidenedOutput(Tensor& y)
      : value(y.defined() && y.dtype() == Dtype::bf16 ? y.detach().to(Dtype::f32) : y),
        original(&y) {}
  void round_back() {
    if (value.defined() && value.dtype() != original->dtype()) cpu::convert(value, *original);
  }
};

template <class A>
bool is_bf16(const A& argument) {
  if constexpr (is_tensor<A>) return argument.defined() && argument.dtype() == Dtype::bf16;
  return false;
}

template <class P, class A>
decltype(auto) widen(A& argument) {
  if constexpr (std::is_same_v<P, const Tensor&>) {
    return WidenedInput(argument);
  } else if constexpr (std::is_same_v<P, Tensor&>) {
    return WidenedOutput(argument);
  } else {
    return Widened<P>{argument};
  }
}

template <class... P, class... A>
void call_widened(void (*twin)(P...), A&... arguments) {
  auto wide = std::tuple<decltype(widen<P>(arguments))...>(widen<P>(arguments)...);
  std::apply([&](auto&... w) { twin(w.value...); }, wide);
  const auto round_back = [](auto& w) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(w)>, WidenedOutput>) w.round_back();
  };
  std::apply([&](auto&... w) { (round_back(w), ...); }, wide);
}

}  // namespace detail

// run() for a CPU twin that takes bf16 as it is.
template <auto Cpu, auto Gpu, class... Args>
void run_as_is(Device device, Args&&... arguments) {
  static_assert(std::is_same_v<decltype(Cpu), decltype(Gpu)>, "twins share one function type");
  if (!device.is_cuda()) {
    Cpu(arguments...);
  } else if constexpr (has_cuda) {
    gpu::use(device);
    Gpu(arguments...);
  } else {
    require_available("run", device);
  }
}

template <auto Cpu, auto Gpu, class... Args>
void run(Device device, Args&&... arguments) {
  if (!device.is_cuda() && (detail::is_bf16(arguments) || ...))
    detail::call_widened(Cpu, arguments...);
  else
    run_as_is<Cpu, Gpu>(device, arguments...);
}

}  // namespace ebb
