// Internal: not in <ebb/ebb.h>, not installed.
// Φ(−|x|) of the normal distribution is t · q(2t − 1) · e^(−x²/2), t = 1 / (1 + slope · |x|), with
// a polynomial q through the Chebyshev points. However small it is, that is within 7e-8 of it in
// f32 and 2e-16 in f64; for results in bf16, which round by 2e-3, within 2e-5.
#pragma once
#include "ebb/core/dtype.h"

namespace ebb {

// slope; q from the highest power on.
template <class T>
struct NormalTail;

template <>
struct NormalTail<float> {
  float slope = 1.0f / 4;
  float q[10] = {4.06540789e-5f, 3.23350308e-5f, -3.9393802e-4f, -8.69049115e-4f, 1.88031388e-3f,
                 1.50988284e-2f, 4.66310461e-2f, 9.67843899e-2f, 1.51974149e-1f,  1.88821282e-1f};
};

template <>
struct NormalTail<bf16> {
  float slope = 1 / 3.05f;
  float q[6] = {-1.9370898e-3f, -2.5875465e-3f, 1.7418967e-2f,
                7.8345898e-2f,  1.6911358e-1f,  2.3963655e-1f};
};

template <>
struct NormalTail<double> {
  double slope = 1.0 / 5;
  double q[23] = {-1.6332385248857973e-10, -1.0074604252759712e-10, 1.8893655039354733e-9,
                  1.0031299879715714e-9,   -1.3565110626582311e-8,  -7.1636801030864468e-9,
                  8.6805251896595507e-8,   6.621396143053724e-8,    -5.5386757420877083e-7,
                  -7.9558252811864845e-7,  3.3362198231726934e-6,   9.9523542379584365e-6,
                  -1.1875134657297731e-5,  -1.08979766180186e-4,    -1.5957388189616127e-4,
                  5.9867534764464399e-4,   4.1590133601883231e-3,   1.3823727741762866e-2,
                  3.3004073234068563e-2,   6.2706631334242753e-2,   9.9061123193995358e-2,
                  1.3307650057801154e-1,   1.5383860995001259e-1};
};

}  // namespace ebb
