// invert_colors(x) = max − x                                             shape: any → same
// dx = −dy
//
// `max` is 1 for floating images and 255 for u8, unless given. u8 images have no gradient; what
// would be below 0 becomes 0. Journal day 13.
// Errors: `dtype` for i32; `value` unless max > 0 and finite, of u8 a whole number up to 255.
#pragma once
#include <optional>

#include "ebb/ops/ops.h"

namespace ebb {

struct InvertOptions {
  std::optional<double> max = {};
};

Tensor invert_colors(const Tensor& x, const InvertOptions& options = {});

using Invert = void(const Tensor& x, double max, Tensor& y);
namespace cpu {
Invert invert_colors;
}
namespace gpu {
Invert invert_colors;
}

}  // namespace ebb
