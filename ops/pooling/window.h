// What max_pool2d and avg_pool2d share: the extents of their windows.
#pragma once
#include <algorithm>
#include <optional>

#include "ebb/ops/ops.h"

namespace ebb {

// Output (p, q) sees the inputs p·stride − padding + r·dilation, 0 <= r < kernel, inside the image.
struct PoolSize {
  std::int64_t planes, h, w, p, q;
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

struct PoolOptions {
  Pair kernel;
  Pair stride;
  Pair padding;
  Pair dilation;
  bool ceil_mode;
};

// Checks x [N,C,H,W] or [C,H,W] and the options; ceil_mode adds a last window that is not full, if
// it starts inside the image or its left padding.
PoolSize pool_size(std::string_view op, const Tensor& x, const PoolOptions& options);
Shape pool_shape(const Tensor& x, const PoolSize& size);

}  // namespace ebb
