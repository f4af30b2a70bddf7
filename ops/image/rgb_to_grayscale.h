// rgb_to_grayscale(x): y = w₀ R + w₁ G + w₂ B
// dx of channel c = w_c · dy               shapes: [N,3,H,W] → [N,1,H,W], [3,H,W] → [1,H,W]
//
// Of u8 images the sum is rounded to nearest, ties to even, and kept within 0 … 255; they have no
// gradient. Journal day 3.
// Errors: `shape` unless there are 3 channels, `dtype` for i32, `value` unless weights are finite.
// Source: the weights are those of ITU-R BT.601.
#pragma once
#include <array>

#include "ebb/ops/ops.h"

namespace ebb {

struct GrayscaleOptions {
  std::array<double, 3> weights = {0.299, 0.587, 0.114};
};

Tensor rgb_to_grayscale(const Tensor& x, const GrayscaleOptions& options = {});

using Grayscale = void(const Tensor& x, const GrayscaleOptions& options, Tensor& y);
namespace cpu {
Grayscale rgb_to_grayscale;
Grayscale rgb_to_grayscale_backward;  // dy → dx
}  // namespace cpu
namespace gpu {
Grayscale rgb_to_grayscale;
Grayscale rgb_to_grayscale_backward;
}  // namespace gpu

}  // namespace ebb
