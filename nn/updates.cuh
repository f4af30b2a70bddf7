// One step of an optimizer on the GPU: one kernel for all parameters of one type whose gradients
// are of one type. In most models that is one kernel; of bf16 parameters, those whose gradient is a
// sum of several, in f32, make a second.
#pragma once
#include "ebb/nn/multi_tensor.cuh"

namespace ebb::nn::gpu {

// f for a bf16 parameter: on its master, which counts where it still rounds to the parameter.
template <class F>
struct OnMaster {
  F f;
  __device__ auto loaded() const { return OnMaster<F>{f.loaded()}; }
  template <class G, class... S>
  __device__ void operator()(double decay, bf16& p, const G& g, float& master, S&... slots) const {
    if (narrow<bf16>(master).bits != p.bits) master = widen(p);
    f(decay, master, widen(g), slots...);
    p = narrow<bf16>(master);
  }
};

// Of each list, the tensors that are chosen.
template <class X>
std::vector<X> chosen(const std::vector<X>& all, const std::vector<size_t>& which) {
  std::vector<X> some;
  for (const size_t i : which) some.push_back(all[i]);
  return some;
}

// Calls f(decay, p, g, slots…) for every element of every parameter, in T, f32 for bf16; `make`
// makes f of T{}.
template <int slots, class Make>
void for_each_update(const char* op, const Batch& batch, Make&& make) {
  const Tensors &p = batch.parameters, &g = batch.gradients;
  const auto of = [&](Dtype parameter, Dtype gradient) {
    std::vector<size_t> which;
    for (size_t i = 0; i < p.size(); ++i)
      if (p[i].dtype() == parameter && g[i].dtype() == gradient) which.push_back(i);
    return which;
  };
  const auto run = [&]<size_t... k>(auto t, auto gradient, std::index_sequence<k...>) {
    using T = decltype(t);
    using G = decltype(gradient);
    using S = ebb::gpu::Compute<T>;
    const std::vector<size_t> which = of(dtype_of<T>, dtype_of<G>);
    if (which.empty()) return;
    const auto some = [&](const Tensors& all) { return chosen(all, which); };
    const std::vector<double> numbers = chosen(batch.decay, which);
    if constexpr (std::is_same_v<T, bf16>) {
      multi_map<T, const G, float, decltype(k, S{})...>(
          op, OnMaster{make(S{})}, {some(p), some(g), some(batch.masters), some(batch.slots[k])...},
          numbers);
    } else {
      multi_map<T, const G, decltype(k, S{})...>(
          op, make(S{}), {some(p), some(g), some(batch.slots[k])...}, numbers);
    }
  };
  constexpr auto each = std::make_index_sequence<slots>{};
  run(0.0f, 0.0f, each);
  run(0.0, 0.0, each);
  run(bf16{}, bf16{}, each);
  run(bf16{}, 0.0f, each);
}

}  // namespace ebb::nn::gpu
