// y[n,c,p,q] = Σ over the window of x / divisor                x [N,C,H,W] or [C,H,W] → [...,P,Q]
//
// Windows as for max_pool2d, without dilation. The divisor is the number of places of the window
// inside the padded image (count_include_pad) or inside the image, or divisor_override. A ceil_mode
// window that sticks out beyond the padding does not count what is there.
//
// Errors: as max_pool2d; `value` for a divisor_override of 0. Journal day 22.
#pragma once
#include "ebb/ops/pooling/window.h"

namespace ebb {

struct AvgPool2dOptions {
  std::optional<Pair> stride = {};  // the kernel size
  Pair padding = 0;
  bool ceil_mode = false;
  bool count_include_pad = true;
  std::optional<std::int64_t> divisor_override = {};
};

Tensor avg_pool2d(const Tensor& x, Pair kernel_size, AvgPool2dOptions options = {});

// What a window's sum is divided by.
struct Divisor {
  bool count_padding;
  std::int64_t fixed;  // or 0
};

using AvgPool2d = void(const PoolSize& size, const Divisor& divisor, const Tensor& x, Tensor& y);
namespace cpu {
AvgPool2d avg_pool2d;
AvgPool2d avg_pool2d_backward;  // dy → dx
}  // namespace cpu
namespace gpu {
AvgPool2d avg_pool2d;
AvgPool2d avg_pool2d_backward;
}  // namespace gpu

}  // namespace ebb
