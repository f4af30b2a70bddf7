// Activation checkpointing: memory for time.
//
//   Tensor y = recompute([block](const Tensor& x) mutable { return block(x); }, x);
//
// f(x), of which only x is kept: what f computes on the way is let go, and computed again when
// backward gets there. Random numbers that f draws from default_generator() are drawn again, so
// values and gradients have the bits that f(x) alone would have given. f should copy or share what
// it needs: it is called after this function has returned. What f changes, buffers for instance, it
// changes twice. Parameters must not change in between; x may not (error `state`).
// Source: Chen et al. 2016, arXiv:1604.06174.
#pragma once
#include <functional>

#include "ebb/core/tensor.h"

namespace ebb {

Tensor recompute(const std::function<Tensor(const Tensor&)>& f, const Tensor& x);

}  // namespace ebb
