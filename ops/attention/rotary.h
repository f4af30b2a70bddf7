// Rotary positions: each head's vector turns by an angle that grows with its place, so that the
// product of a query and a key depends on how far apart they are.
//
// x [batch,length,heads,head_dim], all heads turned, or packed queries, keys and values
// [batch,length,3,heads,head_dim], of which the values stay as they are                → x's shape
// Element i < d/2 of a head, d = head_dim, turns with element i + d/2 (the half-split pairs of
// LLaMA), at position p = first + place by θ = p · base^(−2i/d):
//   yᵢ = xᵢ cos θ − xᵢ₊d/₂ sin θ        yᵢ₊d/₂ = xᵢ₊d/₂ cos θ + xᵢ sin θ
// The gradient is dy turned by −θ. Angles are computed in f64.
//
// Errors: `shape` unless x has 4 dimensions, or 5 with 3 as the third, and head_dim is even;
// `dtype` unless x is floating; `value` for a first outside 0 … 2^53, and unless base is above 1.
// Source: Su et al. 2021, arXiv:2104.09864.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct RotaryOptions {
  std::int64_t first = 0;  // the position of x[:, 0]
  double base = 10000;
};

Tensor rotary(const Tensor& x, const RotaryOptions& options = {});

// How the twins see x: [batch][length][turned + kept heads][width].
struct RotaryLayout {
  std::int64_t batch, length, turned, kept, width;
};

// `turn` is 1, or −1 for backward.
using Rotary = void(const Tensor& x, const RotaryLayout& layout, const RotaryOptions& options,
                    int turn, Tensor& y);
namespace cpu {
Rotary rotary;
}
namespace gpu {
Rotary rotary;
}

}  // namespace ebb
