// Internal: not in <ebb/ebb.h>, not installed.
// Convolutions of stride 1 on the tensor cores of Hopper GPUs, for bf16, and for float32 where TF32
// is allowed. Each does its work and returns true, or nothing and false where it cannot or is not
// worth it: another GPU, a binary without sm_90a code, strides, few tiles.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu::convolution {
struct Gather;
struct Weights;
}

namespace ebb::gpu::hopper {

// Forward, or `transposed` the input gradient.
bool convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out);
bool weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw);

// What it is in TF32.
bool weight_gradient_tf32(const convolution::Weights& whole, const convolution::Gather& g,
                          const Tensor& x, const Tensor& dy, Tensor& dw);

}  // namespace ebb::gpu::hopper
