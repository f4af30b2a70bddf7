// Internal: not in <ebb/ebb.h>, not installed.
// Convolutions of few products by their definition: one kernel each, that is over before others
// have packed their operands. Each does its work and returns true, or nothing and false where there
// are more products.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu::few {

// Forward, or `transposed` the input gradient.
bool convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out);
bool weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw);

}  // namespace ebb::gpu::few
