// Internal: not in <ebb/ebb.h>, not installed.
// Convolutions whose stride leaves windows little in common as one product of whole matrices, by
// the library: patches of images, long kernels with long strides. Each does its work and returns
// true, or nothing and false where windows overlap more, groups or dilation are asked for, matrices
// would not be aligned, or runs of pixels be short.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu::unfolded {

// Forward, or `transposed` the input gradient.
bool convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out);
bool weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw);

}  // namespace ebb::gpu::unfolded
