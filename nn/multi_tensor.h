// Internal: not in <ebb/ebb.h>, not installed.
// Many tensors of many sizes as one run of chunks, so that a step of an optimizer is one kernel.
#pragma once
#include "ebb/core/parallel.h"
#include "ebb/nn/optimizer.h"

namespace ebb::nn {

// Calls f(tensor's index, chunk's number over all, first element, one past the last), in parallel.
template <class F>
void for_each_chunk(const std::vector<Tensor>& tensors, F&& f) {
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

}  // namespace ebb::nn
