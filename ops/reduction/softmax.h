// softmax(x)ᵢ = exp(xᵢ − m) / Σⱼ exp(xⱼ − m), m = max x, along one dimension    shape: any → same
// dxᵢ = yᵢ (dyᵢ − Σⱼ yⱼ dyⱼ)
//
// −inf gives 0; a row of nothing but −inf, or with +inf or NaN in it, is NaN, and no other row is.
// Errors: `dtype` unless x is floating, `index` for a dimension that x lacks.
// Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network
// outputs". Journal day 8.
#pragma once
#include "ebb/ops/reduction/axes.h"

namespace ebb {

struct SoftmaxOptions {
  std::int64_t dim = -1;
};

Tensor softmax(const Tensor& x, SoftmaxOptions options = {});

// View says how the tensors are seen; y is the output of the forward map.
using MapAlong = void(const Tensor& x, const View& view, Tensor& y);
using MapAlongBackward = void(const Tensor& y, const Tensor& dy, const View& view, Tensor& dx);
namespace cpu {
MapAlong softmax;
MapAlongBackward softmax_backward;
}  // namespace cpu
namespace gpu {
MapAlong softmax;
MapAlongBackward softmax_backward;
}  // namespace gpu

}  // namespace ebb
