// y[n,k,p,q] = b[k] + Σ over c,r,s of x[n, c, p·stride + r·dilation − padding, …] · w[k,c,r,s]
//
// x [N,C,H,W], w [K, C/groups, R, S], b [K] or undefined → y [N,K,P,Q],
// P = ⌊(H + 2·padding − dilation·(R−1) − 1) / stride⌋ + 1, Q likewise from W and S.
// Group g of the K output channels sees group g of the C input channels. Outside the image x is 0.
// The convolution of deep learning: a correlation, the kernel is not flipped. Journal days 9, 21.
//
// Errors: `shape` for ranks, channel counts, a kernel larger than the padded input; `value` for
// stride, dilation or groups below 1, negative padding, groups that do not divide the channels;
// `limit` when the output size overflows; `dtype`, `device`. Source: Dumoulin and Visin 2016,
// arXiv:1603.07285.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct Conv2dOptions {
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  std::int64_t groups = 1;
};

Tensor conv2d(const Tensor& x, const Tensor& w, const Tensor& b = {}, Conv2dOptions options = {});

// conv2d under the name that errors give: what conv1d is made of.
Tensor convolve(const char* op, const Tensor& x, const Tensor& w, const Tensor& b,
                const Conv2dOptions& options);

// Every extent that the loops need.
struct Conv2dSize {
  std::int64_t n, c, h, w;  // input
  std::int64_t k, r, s;     // output channels, kernel
  std::int64_t p, q;        // output
  Conv2dOptions options;
  std::int64_t channels_in_group() const { return c / options.groups; }
  std::int64_t filters_in_group() const { return k / options.groups; }
};

using Conv2dForward = void(const Conv2dSize& size, const Tensor& x, const Tensor& w,
                           const Tensor& b, Tensor& y);
// Any of dx, dw and db may be undefined: it is not wanted then. So may x without dw, and w without
// dx.
using Conv2dBackward = void(const Conv2dSize& size, const Tensor& x, const Tensor& w,
                            const Tensor& dy, Tensor& dx, Tensor& dw, Tensor& db);

namespace cpu {
Conv2dForward conv2d;
Conv2dBackward conv2d_backward;
}  // namespace cpu
namespace gpu {
Conv2dForward conv2d;
Conv2dBackward conv2d_backward;
}  // namespace gpu

}  // namespace ebb
