// Products by cuBLASLt: the algorithm for all that the choice depends on, found once.
#pragma once
#include <compare>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/linalg/gemm.h"

namespace ebb::gpu {

// What becomes of the sums, after the bias. gelu keeps them too, gelu_backward reads those.
enum class Then { nothing, gelu, gelu_backward };

// What is one matrix for the whole batch: nothing, a, or a and what is added.
enum class Shared { nothing, a, a_and_plus };

// Everything that the choice of an algorithm depends on.
struct Key {
  GemmSize size;
  Dtype dtype;   // of a and b
  Dtype result;  // the same, or f32 for bf16
  bool tf32;
  bool bias = false;  // in the epilogue
  Then then = Then::nothing;
  Shared shared = Shared::nothing;

  auto operator<=>(const Key&) const = default;
};

// The operands of one call, in cuBLAS's order.
struct Call {
  const void* a;
  const void* b;
  const void* bias;  // for the epilogue, or null
  const void* plus;  // what is added to the product, or null; may be y
  void* y;
  const void* h = nullptr;  // gelu's argument: written by gelu, read by its backward
};

// Queues y = op(a) · op(b), and what `key` says becomes of it. False, and nothing queued, when
// cuBLASLt has no algorithm for it.
bool multiply(std::string_view op, Device device, const Key& key, const Call& call);

}  // namespace ebb::gpu
