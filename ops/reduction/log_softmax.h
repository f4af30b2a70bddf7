// log_softmax(x)ᵢ = (xᵢ − m) − log Σⱼ exp(xⱼ − m), m = max x, along one dimension
//                                                                        shape: any → same
// dxᵢ = dyᵢ − exp(yᵢ) Σⱼ dyⱼ
//
// Where softmax would round to 0 this stays finite. Special values and errors as softmax.
#pragma once
#include "ebb/ops/reduction/softmax.h"

namespace ebb {

Tensor log_softmax(const Tensor& x, SoftmaxOptions options = {});

namespace cpu {
MapAlong log_softmax;
MapAlongBackward log_softmax_backward;
}  // namespace cpu
namespace gpu {
MapAlong log_softmax;
MapAlongBackward log_softmax_backward;
}  // namespace gpu

}  // namespace ebb
