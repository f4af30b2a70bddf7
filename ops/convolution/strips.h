// Internal: not in <ebb/ebb.h>, not installed.
// Depthwise convolutions in float32 and bf16 with the kernels that networks have: 3×3 (stride 1 or
// 2), 5×5, 7×7, and rows of 3, 5 or 9 taps, padded by half of them. Each does its work and returns
// true, or nothing and false for others, which are for planes.h. What is not finite is as there.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu::strips {

// Forward, or `transposed` the input gradient.
bool convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out);
// All gradients at once; of dx and db, those that are defined.
bool backward(const Conv2dSize& size, const Tensor& x, const Tensor& w, const Tensor& dy,
              Tensor& dx, Tensor& dw, Tensor& db);

}  // namespace ebb::gpu::strips
