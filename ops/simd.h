// Internal: not in <ebb/ebb.h>, not installed.
// Simd<T>: as many T as one SIMD register holds, with arithmetic, so that a CPU kernel's formula
// reads like the mathematics and every element goes through the same instructions, wherever it
// lies and whatever the number of threads.
//
//   Simd<T> silu(Simd<T> x) { return x / (1 + exp(-x)); }
//
// bf16 is calculated with as f32: widened when it is loaded, rounded when it is stored.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "ebb/core/eigen.h"

namespace ebb::cpu {

// Conditions are in the compiler's own vectors, as what it makes of them is one instruction, where
// Eigen's go to and fro between the registers of masks and of numbers.
template <class T>
struct Mask {
  static_assert(lanes<T> > 1, "Eigen knows no SIMD registers of this target");
  decltype(Packet<T>() < Packet<T>()) v;
  friend Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
  friend Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
};

// What T is calculated with as.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

// Registers of 512 bits, with masks for elements of any size.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define EBB_MASKED_REGISTERS
inline constexpr bool has_masks = lanes<float> == 16;
#else
inline constexpr bool has_masks = false;
#endif

template <class T>
Wide<T> wide(T x) {
  return Wide<T>(x);
}

template <class T>
struct Simd {
  using P = Packet<T>;
  using Word = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  using Words [[gnu::vector_size(sizeof(P))]] = Word;
  using Halves [[gnu::vector_size(2 * lanes<T>)]] = std::uint16_t;
  P v;

  Simd(T x) : v(Eigen::internal::pset1<P>(x)) {}  // NOLINT: 1 + x is how it is written
  static Simd of(const P& v) {
    Simd x(T(0));
    x.v = v;
    return x;
  }
  static Simd load(const T* p) { return of(Eigen::internal::ploadu<P>(p)); }
  void store(T* p) const { Eigen::internal::pstoreu(p, v); }

  static Simd of_bits(const Words& w) { return of(P(w)); }
  friend Words bits(Simd x) { return Words(x.v); }

  static Simd load(const bf16* p) requires std::is_same_v<T, float> {
#ifdef EBB_MASKED_REGISTERS
    return of_halves(_mm256_loadu_si256(as_words(p)));
#else
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return of_bits(__builtin_convertvector(h, Words) << 16);
#endif
  }
  // As bf16(x) rounds. The processors' own instruction would make 0 of denormals.
  void store(bf16* p) const requires std::is_same_v<T, float> {
#ifdef __AVX512BF16__
    constexpr int denormal = 0x20;
    if (!_mm512_fpclass_ps_mask(v, denormal)) [[likely]]
      return _mm256_storeu_si256(as_words(p), __m256i(_mm512_cvtneps_pbh(v)));
#endif
    const Words b = bits(*this), high = b >> 16;
    const Words rounded = v == v ? (b + 0x7fffu + (high & 1u)) >> 16 : high | 0x40u;
    const Halves h = __builtin_convertvector(rounded, Halves);
    std::memcpy(static_cast<void*>(p), &h, sizeof h);
  }

  // The first n alone, or all where n is larger; the others are 1, which no formula minds.
  template <class E>
  static Simd load(const E* p, std::int64_t n) {
    if constexpr (has_masks) return load_masked(p, n);
    T all[lanes<T>];
#pragma omp simd
    for (int i = 0; i < lanes<T>; ++i) all[i] = i < n ? T(p[i]) : T(1);
    return load(all);
  }
  template <class E>
  void store(E* p, std::int64_t n) const {
    if constexpr (has_masks) return store_masked(p, n);
    T all[lanes<T>];
    store(all);
#pragma omp simd
    for (int i = 0; i < lanes<T>; ++i)
      if (i < n) p[i] = E(all[i]);
  }

  friend Simd operator+(Simd a, Simd b) { return of(Eigen::internal::padd(a.v, b.v)); }
  friend Simd operator-(Simd a, Simd b) { return of(Eigen::internal::psub(a.v, b.v)); }
  friend Simd operator*(Simd a, Simd b) { return of(Eigen::internal::pmul(a.v, b.v)); }
  friend Simd operator/(Simd a, Simd b) { return of(Eigen::internal::pdiv(a.v, b.v)); }
  friend Simd operator-(Simd a) { return of(Eigen::internal::pnegate(a.v)); }
  friend Mask<T> operator<(Simd a, Simd b) { return {a.v < b.v}; }
  friend Mask<T> operator<=(Simd a, Simd b) { return {a.v <= b.v}; }
  friend Mask<T> operator==(Simd a, Simd b) { return {a.v == b.v}; }

  // Not a <= b: larger, or one of them is NaN.
  friend Mask<T> not_at_most(Simd a, Simd b) { return {~(a.v <= b.v)}; }

  // Whether x takes the place of the best so far: it is larger, or the first NaN.
  friend Mask<T> beats(Simd x, Simd best) {
    return not_at_most(x, best) & (best == best);  // NOLINT(misc-redundant-expression): not NaN
  }

  // NaN compares as false, so what a condition does to NaN is seen in the formula.
  friend Simd select(Mask<T> condition, Simd yes, Simd no) {
    return of(condition.v ? yes.v : no.v);
  }
  // select(condition, 0, x), by bits: of a select GCC may make a load of x that waits for the
  // condition, and then two streams of memory take turns.
  friend Simd zero_where(Mask<T> condition, Simd x) {
    return of(P(decltype(condition.v)(x.v) & ~condition.v));
  }
  friend Simd abs(Simd x) { return of(Eigen::internal::pabs(x.v)); }
  friend Simd sqrt(Simd x) { return of(Eigen::internal::psqrt(x.v)); }

  friend Simd copy_sign(Simd size, Simd sign) {
    const Words top = bits(Simd(T(-0.0)));
    return of_bits((bits(size) & ~top) | (bits(sign) & top));
  }
  // NaN stays NaN.
  friend Simd clamp(Simd x, T low, T high) {
    return of(Eigen::internal::pmax(Eigen::internal::pmin(x.v, Simd(high).v), Simd(low).v));
  }
  friend Simd fma(Simd a, Simd b, Simd c) { return of(Eigen::internal::pmadd(a.v, b.v, c.v)); }

  // simd_math.h has these.
  friend Simd exp(Simd x) { return exponential(x); }
  friend Simd log(Simd x) { return logarithm(x); }
  friend Simd tanh(Simd x) { return hyperbolic_tangent(x); }

 private:
#ifdef EBB_MASKED_REGISTERS
  // What GCC makes of loops and vectors for AVX-512 goes through memory, in halves.
  static std::uint32_t mask_of(std::int64_t n) {
    return (1u << std::min<std::int64_t>(n, lanes<T>)) - 1u;
  }
  static auto* as_words(bf16* p) { return reinterpret_cast<__m256i*>(p); }
  static auto* as_words(const bf16* p) { return reinterpret_cast<const __m256i*>(p); }
  static Simd of_halves(__m256i h) {
    return of(P(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
  }
  template <class E>
  static Simd load_masked(const E* p, std::int64_t n) {
    const std::uint32_t mask = mask_of(n);
    const Simd one = T(1);
    if constexpr (std::is_same_v<E, bf16>)
      return of_halves(_mm256_mask_loadu_epi16(_mm256_set1_epi16(0x3f80), __mmask16(mask), p));
    else if constexpr (std::is_same_v<T, float>)
      return of(_mm512_mask_loadu_ps(one.v, __mmask16(mask), p));
    else
      return of(_mm512_mask_loadu_pd(one.v, __mmask8(mask), p));
  }
  template <class E>
  void store_masked(E* p, std::int64_t n) const {
    const std::uint32_t mask = mask_of(n);
    if constexpr (std::is_same_v<E, bf16>) {
      bf16 all[lanes<T>];
      store(all);
      _mm256_mask_storeu_epi16(p, __mmask16(mask), _mm256_loadu_si256(as_words(all)));
    } else if constexpr (std::is_same_v<T, float>) {
      _mm512_mask_storeu_ps(p, __mmask16(mask), v);
    } else {
      _mm512_mask_storeu_pd(p, __mmask8(mask), v);
    }
  }
#endif
};

template <class T>
T first(Simd<T> x) {
  return Eigen::internal::pfirst(x.v);
}

// 0, 1, 2, …
template <class T>
Simd<T> lane_numbers() {
  return Simd<T>::of(Eigen::internal::plset<Packet<T>>(T(0)));
}

// The lanes c … of a row that lie before n.
template <class T>
Mask<T> before(std::int64_t n, std::int64_t c) {
  return Simd<T>::of(Eigen::internal::plset<Packet<T>>(T(c))) < Simd<T>(T(n));
}

// The first n of a register, the others 0.
template <class T>
Simd<T> load_up_to(const T* p, std::int64_t n) {
  if (n >= lanes<T>) return Simd<T>::load(p);
  return select(before<T>(n, 0), Simd<T>::load(p, n), T(0));
}
template <class T>
void store_up_to(Simd<T> x, T* p, std::int64_t n) {
  n >= lanes<T> ? x.store(p) : x.store(p, n);
}

// A register's lanes in double, of which one holds a part of them.
template <class T>
inline constexpr int double_parts = lanes<T> / lanes<double>;

template <int part>
Simd<double> as_double(Simd<double> x) {
  return x;
}
template <int part, class P = Packet<float>>
Simd<double> as_double(Simd<float> x) {
  const auto some = [v = P(x.v)]<size_t... i>(std::index_sequence<i...>) {
    return __builtin_shufflevector(v, v, (part * lanes<double> + int(i))...);
  }
  (std::make_index_sequence<lanes<double>>());
  if constexpr (sizeof(P) == 64) {  // GCC 12 puts what follows together from halves
    return Simd<double>::of(_mm512_cvtps_pd(some));
  } else if constexpr (sizeof(P) == 32) {
    return Simd<double>::of(_mm256_cvtps_pd(some));
  } else {
    return Simd<double>::of(__builtin_convertvector(some, Packet<double>));
  }
}

// The same for a formula of numbers.
template <class T>
bool not_at_most(T a, T b) {
  return !(a <= b);
}
template <class T>
bool beats(T x, T best) {
  return x > best || (std::isnan(x) && !std::isnan(best));
}
template <class T>
T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

// Elements `step` apart, side by side. Small steps are known to the compiler, which makes SIMD of
// them.
template <class From, class To>
void gather_row(const From* from, std::int64_t step, std::int64_t n, To* to) {
  const auto gather = [=](auto step) {
    for (std::int64_t i = 0; i < n; ++i) to[i] = To(from[i * step]);
  };
  switch (step) {
    case 2:
      return gather(std::integral_constant<std::int64_t, 2>());
    case 3:
      return gather(std::integral_constant<std::int64_t, 3>());
    case 4:
      return gather(std::integral_constant<std::int64_t, 4>());
    default:
      return gather(step);
  }
}

}  // namespace ebb::cpu

#undef EBB_MASKED_REGISTERS

#include "ebb/ops/simd_math.h"
