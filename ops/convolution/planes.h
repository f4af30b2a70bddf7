// Internal: not in <ebb/ebb.h>, not installed.
// Convolutions of groups of few channels (depthwise) by whole rows of planes. Each does its work
// and returns true, or nothing and false where groups are not as thin, where a tile would not fit
// shared memory, or for the weight gradient of a dilation other than 1 and the stride.
//
// Infinities and NaN reach what sees them. Only an infinite weight meets zeros beside the image, or
// between dy's pixels, and gives NaN there.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu::planes {

// Forward, or `transposed` the input gradient.
bool convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out);
bool weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw);

}  // namespace ebb::gpu::planes
