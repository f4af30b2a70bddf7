// Internal: not in <ebb/ebb.h>, not installed.
// Many tensors of many sizes as one run of chunks, so that a step of an optimizer is one kernel.
#pragma once
#include "ebb/core/parallel.h"
#include "ebb/nn/optimizer.h"

namespace ebb::nn {

// Calls f(tensor's index, chunk's number over all, first element, one past the last), in parallel.
template <class F>
void for_each_chunk(const Tensors& tensors, F&& f) {
  struct Chunk {
    size_t tensor;
    std::int64_t begin;
    std::int64_t end;
  };
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const std::int64_t n = tensors[t].numel();
    for (std::int64_t i = 0; i < n; i += chunk_size)
      chunks.push_back({t, i, std::min(n, i + chunk_size)});
  }
  parallel_for(static_cast<std::int64_t>(chunks.size()), 8, [&](std::int64_t a, std::int64_t b) {
    for (std::int64_t c = a; c < b; ++c) {
      const Chunk& chunk = chunks[static_cast<size_t>(c)];
      f(chunk.tensor, c, chunk.begin, chunk.end);
    }
  });
}

// Calls f(weights, gradient, n, tensor's index, first element) for chunks of n elements: of f32 and
// f64 parameters where they lie, of bf16 ones with their masters and the gradient in f32.
template <class F>
void for_each_update(const char* op, const Batch& batch, F&& f) {
  const Tensors &p = batch.parameters, &g = batch.gradients;
  const auto update = [&](size_t t, std::int64_t begin, std::int64_t n, auto zero) {
    using T = decltype(zero);
    T* weights = Tensor(p[t]).data<T>() + begin;
    if constexpr (!std::is_same_v<T, bf16>) {
      f(weights, g[t].data<T>() + begin, n, t, begin);
    } else {
      float* master = Tensor(batch.masters[t]).data<float>() + begin;
      float gradient[chunk_size];
      visit<float, bf16>(g[t].dtype(), op, [&](auto of) {
        const auto* from = g[t].data<decltype(of)>() + begin;
        std::transform(from, from + n, gradient, [](auto x) { return static_cast<float>(x); });
      });
      for (std::int64_t i = 0; i < n; ++i)
        if (bf16(master[i]).bits != weights[i].bits) master[i] = static_cast<float>(weights[i]);
      f(master, static_cast<const float*>(gradient), n, t, begin);
      std::transform(master, master + n, weights, [](float w) { return bf16(w); });
    }
  };
  for_each_chunk(p, [&](size_t t, std::int64_t, std::int64_t begin, std::int64_t end) {
    visit<float, double, bf16>(p[t].dtype(), op,
                               [&](auto zero) { update(t, begin, end - begin, zero); });
  });
}

}  // namespace ebb::nn
