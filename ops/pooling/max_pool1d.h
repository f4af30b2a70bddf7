// y[n,c,p] = max over r of x[n, c, p·stride + r·dilation − padding]
//
// x [N,C,L] or [C,L] → y [...,P], P = ⌊(L + 2·padding − dilation·(R−1) − 1) / stride⌋ + 1, or with
// ⌈ ⌉ in ceil_mode. It is max_pool2d on images of height 1: padding, ties, NaN and errors as there.
// Journal day 11.
#pragma once
#include <optional>

#include "ebb/ops/ops.h"

namespace ebb {

struct MaxPool1dOptions {
  std::optional<std::int64_t> stride = {};  // the kernel size
  std::int64_t padding = 0;
  std::int64_t dilation = 1;
  bool ceil_mode = false;
};

Tensor max_pool1d(const Tensor& x, std::int64_t kernel_size, MaxPool1dOptions options = {});

}  // namespace ebb
