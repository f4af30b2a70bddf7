// y[…, d] = w[indices[…], d]                       indices any shape, i32; w [V,D] → y [...,D]
// dw[v, d] = Σ dy[…, d] over the places where indices[…] = v, added in their order, in double
//
// Indices are checked before anything is read: error `index`, naming the first bad one. On the GPU
// that waits for the device. A training loop that has checked its data once may set
// check_indices = false: then nothing waits (and a CUDA graph can be captured), and the row of an
// index outside [0,V) is NaN and adds to no gradient; nothing outside w is read in any case.
//
// Errors: `dtype` unless indices are i32 and w floating; `shape` unless w is [V,D] and the result's
// rank is at most 8; `device`, `index` (above); `limit` when the gradient of 2³¹ indices or more is
// wanted.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct EmbeddingOptions {
  bool check_indices = true;
};

Tensor embedding(const Tensor& indices, const Tensor& weight, EmbeddingOptions options = {});

namespace cpu {
Map2 embedding;           // indices, w → y
Map2 embedding_backward;  // indices, dy → dw
}  // namespace cpu
namespace gpu {
Map2 embedding;
Map2 embedding_backward;
}  // namespace gpu

}  // namespace ebb
