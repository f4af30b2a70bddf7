// Internal: not in <ebb/ebb.h>, not installed.
// The ways in which the GPU computes a convolution. Each does its work and returns true, or nothing
// and false for what is not its own; conv2d.cu asks one after the other.
//
// convolve() is the forward pass, or `transposed` the input gradient: `in` is x or dy then, and
// `out` y or dx.
//
// Infinities and NaN reach what sees them. Only such a weight may meet zeros beside an image, or
// between dy's pixels, and gives NaN there.
#pragma once
#include "ebb/ops/convolution/conv2d.h"

namespace ebb::gpu {

namespace convolution {
inline constexpr std::string_view op = "conv2d";  // what errors and launches are named by
}

using Convolve = bool(const Conv2dSize& size, bool transposed, const Tensor& in,
                      const Tensor& weight, const Tensor& bias, Tensor& out);
using WeightGradient = bool(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw);

// Few products, each output by its definition: one kernel, that is over before others have packed
// their operands.
namespace few {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace few

// Depthwise in float32 and bf16 with the kernels that networks have, in registers: 3×3, 5×5 and 7×7
// (stride 1 or 2), and rows of 3, 5 or 9 taps, padded by half of them.
namespace strips {
Convolve convolve;
// All gradients at once; of dx and db, those that are defined.
bool backward(const Conv2dSize& size, const Tensor& x, const Tensor& w, const Tensor& dy,
              Tensor& dx, Tensor& dw, Tensor& db);
}  // namespace strips

// Groups of few channels else, by whole rows of planes in shared memory. Not the weight gradient of
// a dilation other than 1 and the stride.
namespace planes {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace planes

// One tap that meets every pixel in its place, by the library: a product for each image. Not in
// f64, of groups, or of planes or channels that are no multiple of 4; the weight gradient of large
// images, or of one.
namespace pointwise {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace pointwise

// Strides that leave windows little in common, as one product of whole matrices by the library:
// patches of images, long kernels with long strides, and the other cases of pointwise.
namespace unfolded {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace unfolded

// The input gradient with a stride, of few channels or on Hopper, as a convolution without one.
namespace phases {
Convolve convolve;
}  // namespace phases

// Stride 1 on the tensor cores of Hopper GPUs: bf16, float32 in TF32 where that is allowed, and
// else as three products of TF32. Neither few products nor tiles that float32 would leave half
// empty.
//
// Float32 is as exact as by FMA, or more. The worst of millions of sums of 576 to 4608 products, as
// errors against float64 in units of 2⁻²⁴ Σ|aᵢbᵢ| on an H100: 1.3 of numbers of both signs, where
// FMA has 3.4; 15 of positive ones, whose sums are 4.5 too small on average, where FMA has 42. Of
// numbers below 2⁻¹¹⁴, digits under 2⁻¹³⁷ are lost.
namespace hopper {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace hopper

// bf16, and float32 in TF32 where that is allowed, on the tensor cores of sm_80 and newer.
namespace mma {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace mma

// Everything, by FMA.
namespace tiles {
Convolve convolve;
WeightGradient weight_gradient;
}  // namespace tiles

}  // namespace ebb::gpu
