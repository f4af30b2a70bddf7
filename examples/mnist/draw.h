// Digits drawn by program, to train on where MNIST is not at hand: pen strokes in the shapes that
// people use, jittered, warped, slanted, with a pen of varying width, then placed as MNIST's are.
#pragma once
#include <cstdint>

#include "mnist/data.h"

namespace mnist {

// `count` digits, label i mod 10. Each picture depends on the seed and its index alone, and is the
// same on every machine: nothing but + − × ÷ √ in f32, no fused multiply-add (see CMakeLists.txt).
// Error `value` for a negative count.
Digits draw(int count, std::uint64_t seed);

}  // namespace mnist
