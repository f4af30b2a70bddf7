// Internal: not in <ebb/ebb.h>, not installed.
// Convolutions of stride 1 on the tensor cores of Hopper GPUs: for bf16, for float32 in TF32 where
// that is allowed, and else for float32 as three products of TF32 (chunks.cuh). Each does its work
// and returns true, or nothing and false where it cannot or is not worth it: another GPU, a binary
// without sm_90a code, strides, few tiles, tiles that float32 would leave half empty.
//
// Float32 is as exact as by FMA, or more. The worst of millions of sums of 576 to 4608 products, as
// errors against float64 in units of 2⁻²⁴ Σ|aᵢbᵢ| on an H100: 1.3 of numbers of both signs, where
// FMA has 3.4; 15 of positive ones, whose sums are 4.5 too small on average, where FMA has 42. Of
// numbers below 2⁻¹¹⁴, digits under 2⁻¹³⁷ are lost.
//
// Infinities and NaN reach what sees them. Only an infinite weight meets zeros beside the image,
// and gives NaN at the border.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu::convolution {
struct Gather;
struct Weights;
}  // namespace ebb::gpu::convolution

namespace ebb::gpu::hopper {

// Forward, or `transposed` the input gradient.
bool convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out);
bool weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw);

// What it is in float32.
bool weight_gradient_tf32(const convolution::Weights& whole, const convolution::Gather& g,
                          const Tensor& x, const Tensor& dy, Tensor& dw);

}  // namespace ebb::gpu::hopper
