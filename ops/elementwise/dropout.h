// dropout(x): y = x / (1 − p) where element i is kept, 0 elsewhere       shape: any → same
//
// Whether element i is kept depends on the stream and i alone: the same on every device, for every
// dtype, and again in backward, so that no mask is stored. Elements are dealt out in segments of
// 256: philox(seed, 32 · segment + l, index) gives eight 16-bit draws, low halves first, the first
// four for elements 4l … 4l+3 of the segment, the others for elements 128+4l …; a draw that
// ties with the upper 16 bits of p is decided by the lower ones with another draw, so that p counts
// in steps of 2⁻³². Dropped elements become 0, NaN and infinities too. Not training, or p = 0: x
// itself, or a record of it. Journal day 19.
//
// Errors: `dtype` unless x is floating, `value` unless 0 <= p <= 1, or when both a seed and a
// stream are given. Source: Srivastava et al. 2014.
#pragma once
#include <optional>

#include "ebb/core/random.h"
#include "ebb/ops/ops.h"

namespace ebb {

struct DropoutOptions {
  double p = 0.5;
  bool training = true;
  std::optional<std::uint64_t> seed = {};  // stands for stream {seed, 0}
  std::optional<Stream> stream = {};       // neither: the next one of default_generator()
};

Tensor dropout(const Tensor& x, const DropoutOptions& options = {});

// On the GPU, the shape of the launch is chosen by timing a few once for each device, dtype and
// power of two of the size; the result does not depend on it. Off: a fixed one. On by default.
void tune_dropout(bool on);

// What both twins know of p: drop when a draw is below it.
struct DropThreshold {
  std::uint32_t high = 0;  // 0 … 65536
  std::uint32_t low = 0;   // 0 … 65535
  double scale = 1;        // 1 / (1 − p)

  explicit DropThreshold(double p);
};

using Dropout = void(const Tensor& x, const Stream& stream, const DropThreshold& threshold,
                     Tensor& y);
namespace cpu {
Dropout dropout;
}
namespace gpu {
Dropout dropout;
void tune_dropout(bool on);
}  // namespace gpu

}  // namespace ebb
