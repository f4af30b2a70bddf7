// y[n,c,p,q] = max over r, s of x[n, c, p·stride + r·dilation − padding, …]
//
// x [N,C,H,W] or [C,H,W] → y [...,P,Q], P = ⌊(H + 2·padding − dilation·(R−1) − 1) / stride⌋ + 1, or
// with ⌈ ⌉ in ceil_mode, where the last window must start inside the input or its left padding.
// Padding is −∞. The first maximum in scan order gets the gradient; NaN wins, the last one of
// several. What backward needs is one byte an output: the place of the maximum in its window.
//
// Errors: `value` for a kernel, stride or dilation below 1, negative padding or padding above half
// the kernel; `shape` for other ranks, extents of 0 other than N, an empty output; `limit`,
// `dtype`. Journal day 12.
#pragma once
#include "ebb/ops/pooling/window.h"

namespace ebb {

struct MaxPool2dOptions {
  std::optional<Pair> stride = {};  // the kernel size
  Pair padding = 0;
  Pair dilation = 1;
  bool ceil_mode = false;
};

Tensor max_pool2d(const Tensor& x, Pair kernel_size, MaxPool2dOptions options = {});

// The same under the name that errors give: what max_pool1d is made of.
Tensor max_pool(const char* op, const Tensor& x, const PoolOptions& options);

// `index`, undefined when nobody will ask, is r·S + s: u8 for windows of at most 255 places, else
// i32. A window without any place inside the image has the largest u8, or −1.
using MaxPool2d = void(const PoolSize& size, const Tensor& x, Tensor& index, Tensor& y);
using MaxPool2dBackward = void(const PoolSize& size, const Tensor& index, const Tensor& dy,
                               Tensor& dx);
namespace cpu {
MaxPool2d max_pool2d;
MaxPool2dBackward max_pool2d_backward;
}  // namespace cpu
namespace gpu {
MaxPool2d max_pool2d;
MaxPool2dBackward max_pool2d_backward;
}  // namespace gpu

}  // namespace ebb
