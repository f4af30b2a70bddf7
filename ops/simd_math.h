// Internal: not in <ebb/ebb.h>, not installed; a part of simd.h.
// eˣ, log x and tanh x of registers: powers of two are taken out of the argument, a polynomial does
// the rest. Within 1.2 ulp (tanh: 2.5) of the exact value from the smallest denormal to the largest
// number; infinities go where they belong, and NaN stays NaN.
#pragma once
#include <bit>
#include <limits>

#include "ebb/ops/simd.h"

namespace ebb::cpu {

// Registers of AVX-512, whose instructions know about exponents.
template <class T>
inline constexpr bool knows_exponents = sizeof(Packet<T>) == 64;

#ifdef __AVX512F__
// 1 / x to 14 bits; x 2ⁿ; the m and e of Split below.
inline Simd<float> near_inverse(Simd<float> x) { return Simd<float>::of(_mm512_rcp14_ps(x.v)); }
inline Simd<double> near_inverse(Simd<double> x) { return Simd<double>::of(_mm512_rcp14_pd(x.v)); }
inline Simd<float> scaled(Simd<float> x, Simd<float> n) {
  return Simd<float>::of(_mm512_scalef_ps(x.v, n.v));
}
inline Simd<double> scaled(Simd<double> x, Simd<double> n) {
  return Simd<double>::of(_mm512_scalef_pd(x.v, n.v));
}
inline constexpr auto nan_if_negative = static_cast<_MM_MANTISSA_SIGN_ENUM>(3);  // but −0 is 0
inline Simd<float> fraction(Simd<float> x) {
  return Simd<float>::of(_mm512_getmant_ps(x.v, _MM_MANT_NORM_p75_1p5, nan_if_negative));
}
inline Simd<double> fraction(Simd<double> x) {
  return Simd<double>::of(_mm512_getmant_pd(x.v, _MM_MANT_NORM_p75_1p5, nan_if_negative));
}
inline Simd<float> exponent(Simd<float> x) { return Simd<float>::of(_mm512_getexp_ps(x.v)); }
inline Simd<double> exponent(Simd<double> x) { return Simd<double>::of(_mm512_getexp_pd(x.v)); }
#endif

// c₀ xⁿ + … + cₙ, the even powers beside the odd ones: neither waits for the other.
template <class T, size_t count>
Simd<T> polynomial(Simd<T> x, const T (&c)[count]) {
  const Simd<T> square = x * x;
  Simd<T> y[2] = {c[0], c[1]};
#pragma GCC unroll 32
  for (size_t i = 2; i < count; ++i) y[i % 2] = fma(y[i % 2], square, Simd<T>(c[i]));
  return fma(y[count % 2], x, y[1 - count % 2]);
}

// a / b for normal numbers far from the ends of the range; division takes several times as long.
template <class T>
Simd<T> quotient(Simd<T> a, Simd<T> b) {
  if constexpr (knows_exponents<T>) {
    Simd<T> inverse = near_inverse(b);  // to 28 bits then; what a / b is short of, to 56
    inverse = fma(fma(-b, inverse, 1), inverse, inverse);
    const Simd<T> q = a * inverse;
    return fma(fma(-b, q, a), inverse, q);
  } else {
    return a / b;
  }
}

// The nearest whole number, for less than 2²².
template <class T>
Simd<T> nearest(Simd<T> x) {
  const Simd<T> shift = T(1.5) / std::numeric_limits<T>::epsilon();
  return (x + shift) - shift;
}

// 2ⁿ for whole n, where that is a normal number: n + bias, whose bits are a whole number's.
template <class T>
Simd<T> power_of_two(Simd<T> n) {
  using Limits = std::numeric_limits<T>;
  const Simd<T> shift = T(1.5) / Limits::epsilon() + T(Limits::max_exponent - 1);
  return Simd<T>::of_bits(bits(n + shift) << (Limits::digits - 1));
}

// High and low part of ln 2: whole multiples of the high part, up to the exponents' range, are
// exact.
template <class T>
inline constexpr T ln2_high = sizeof(T) == 8 ? T(6.93147180369123816490e-01)
                                             : T(0.693138122558593750);
template <class T>
inline constexpr T ln2_low = sizeof(T) == 8 ? T(1.90821492927058770002e-10) : T(9.05800061445e-06);

// 1 / x of such numbers, as exactly as results of type T keep it: to 14 bits for bf16, for f32
// within an ulp.
template <class T>
Simd<Wide<T>> inverse(Simd<Wide<T>> x) {
  if constexpr (sizeof(T) == 8 || !knows_exponents<Wide<T>>) {
    return quotient(Simd<Wide<T>>(1), x);
  } else {
    const Simd<Wide<T>> y = near_inverse(x);
    return sizeof(T) == 2 ? y : fma(fma(-x, y, 1), y, y);
  }
}

// eˣ = 2ⁿ (1 + p)
template <class T>
struct Exponential {
  Simd<T> n, p;

  // x = n ln 2 + r, |r| ≤ ln 2 / 2, p = eʳ − 1 = r + r² q(r)
  explicit Exponential(Simd<T> x) : n(nearest(x * T(M_LOG2E))), p(T(0)) {
    const Simd<T> r = fma(n, -ln2_low<T>, fma(n, -ln2_high<T>, x));
    if constexpr (sizeof(T) == 8)
      p = fma(r * r,
              polynomial<T>(
                  r, {2.5100385495510319e-8, 2.7620088445409748e-7, 2.7557268459997065e-6,
                      2.4801521295954375e-5, 1.9841269863053617e-4, 1.3888888917213717e-3,
                      8.3333333333300618e-3, 4.1666666666624128e-2, 1.6666666666666667e-1, 0.5}),
              r);
    else
      p = fma(r * r,
              polynomial<T>(r, {1.39261836e-3, 8.36317905e-3, 4.16665546e-2, 1.6666577e-1, 0.5}),
              r);
  }
};

template <class T>
Simd<T> exponential(Simd<T> x) {
  constexpr T lowest = sizeof(T) == 8 ? -746 : -104;  // e^lowest is 0, e^highest infinite
  constexpr T highest = sizeof(T) == 8 ? 710 : 89;
  const auto [n, p] = Exponential<T>(clamp(x, lowest, highest));
  if constexpr (knows_exponents<T>) {
    return scaled(1 + p, n);
  } else {
    const Simd<T> half = nearest(n * T(0.5));
    return (1 + p) * power_of_two(half) * power_of_two(n - half);
  }
}

// x = m 2ᵉ, 3/4 ≤ m < 3/2. What has no logarithm but ±∞ or NaN has these as e or m.
template <class T>
struct Split {
  Simd<T> m = T(1), e = T(0);

  explicit Split(Simd<T> x) {
    if constexpr (knows_exponents<T>) {
      m = fraction(x);
      e = exponent(x) - exponent(m);
    } else {
      by_bits(x);
    }
  }

 private:
  void by_bits(Simd<T> x) {
    using Limits = std::numeric_limits<T>;
    using Word = typename Simd<T>::Word;
    constexpr int digits = Limits::digits - 1;
    constexpr T two_to_digits = 1 / Limits::epsilon();
    const Mask<T> denormal = x < Simd<T>(Limits::min());
    const auto normal = bits(select(denormal, x * two_to_digits, x));
    const Word start = std::bit_cast<Word>(T(0.75));
    const auto from_start = normal + (std::bit_cast<Word>(T(1)) - start);
    m = Simd<T>::of_bits((from_start & ((Word(1) << digits) - 1)) + start);
    // A whole number below 2^digits is the fraction of 2^digits and itself.
    const auto biased = from_start >> digits | std::bit_cast<Word>(two_to_digits);
    e = Simd<T>::of_bits(biased) - (two_to_digits + T(Limits::max_exponent - 1));
    e = select(denormal, e - T(digits), e);
    e = select(x < Simd<T>(Limits::infinity()), e, x);
    e = select(x == 0, -Limits::infinity(), select(x < 0, Limits::quiet_NaN(), e));
  }
};

// With f = m − 1 and s = f / (2 + f), log m = log((1 + s) / (1 − s)) = 2s + s R(s²), where
// 2s = f − s f and s f = f²/2 − s f²/2: what is added to f last is small.
template <class T>
Simd<T> logarithm(Simd<T> x) {
  const Split<T> split(x);
  const Simd<T> f = split.m - 1, s = quotient(f, 2 + f), z = s * s, half = f * f * T(0.5);
  Simd<T> r = T(0);
  if constexpr (sizeof(T) == 8)
    r = z * polynomial<T>(z, {0.13604015707124077, 0.1321036048513262, 0.15388834677801915,
                              0.18181738454723026, 0.22222223037807242, 0.28571428567339189,
                              0.40000000000007801, 0.66666666666666664});
  else
    r = z * polynomial<T>(z, {0.237473445, 0.285327448, 0.400003113, 0.666666663});
  const Simd<T> small = fma(s, half + r, split.e * ln2_low<T>);
  return fma(split.e, ln2_high<T>, f - (half - small));
}

// tanh|x| = w / (w + 2) with w = e^(2|x|) − 1, which is made without taking 1 from eˣ where that
// would cancel. From 22 on it is 1.
template <class T>
Simd<T> hyperbolic_tangent(Simd<T> x) {
  const auto [n, p] = Exponential<T>(clamp(abs(x) * T(2), 0, 44));
  const Simd<T> scale = power_of_two(n), w = fma(scale, p, scale - 1);
  return copy_sign(quotient(w, w + 2), x);
}

}  // namespace ebb::cpu
