// gelu(x) = x · Φ(x), Φ(x) = (1 + erf(x/√2)) / 2                         shape: any → same
// approximate "tanh" (default): gelu(x) = x/2 · (1 + tanh(u)), u = √(2/π) · (x + 0.044715 x³)
//
// gelu'(x) = Φ(x) + x · φ(x), φ(x) = e^(−x²/2) / √(2π); of the tanh form
// gelu'(x) = (1 + t)/2 + x/2 · (1 − t²) · √(2/π) · (1 + 0.134145 x²), t = tanh(u)
//
// Journal day 27.
// Errors: `dtype` unless x is floating, `value` unless approximate is "tanh" or "none".
// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct GeluOptions {
  std::string_view approximate = "tanh";  // or "none"
};

Tensor gelu(const Tensor& x, const GeluOptions& options = {});

using Gelu = void(const Tensor& x, bool approximate, Tensor& y);
using GeluBackward = void(const Tensor& x, const Tensor& dy, bool approximate, Tensor& dx);
namespace cpu {
Gelu gelu;
GeluBackward gelu_backward;
}  // namespace cpu
namespace gpu {
Gelu gelu;
GeluBackward gelu_backward;
}  // namespace gpu

}  // namespace ebb
