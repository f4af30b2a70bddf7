// Element types: f32 to train, f64 to check gradients, bf16 to train on GPUs (with f32 arithmetic),
// i32 for indices and labels, u8 for images.
#pragma once
#include <bit>
#include <concepts>
#include <cstdint>
#include <ostream>
#include <string_view>
#include <utility>

#include "ebb/core/error.h"

namespace ebb {

enum class Dtype : unsigned char { f32, f64, bf16, i32, u8 };

// bfloat16: the upper half of a float; the conversion rounds to nearest, ties to even.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  constexpr explicit bf16(float value) : bits(round(std::bit_cast<std::uint32_t>(value))) {}
  constexpr explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }

 private:
  static constexpr std::uint16_t round(std::uint32_t b) {
    if ((b & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(b >> 16 | 0x40u);  // NaN
    return static_cast<std::uint16_t>((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
  }
};

template <class T>
concept Element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bf16> ||
    std::same_as<T, std::int32_t> || std::same_as<T, std::uint8_t>;

template <Element T>
inline constexpr Dtype dtype_of = std::same_as<T, float>          ? Dtype::f32
                                  : std::same_as<T, double>       ? Dtype::f64
                                  : std::same_as<T, bf16>         ? Dtype::bf16
                                  : std::same_as<T, std::int32_t> ? Dtype::i32
                                                                  : Dtype::u8;

constexpr std::int64_t size_of(Dtype dtype) {
  constexpr std::int64_t sizes[] = {4, 8, 2, 4, 1};
  return sizes[static_cast<int>(dtype)];
}

constexpr std::string_view name(Dtype dtype) {
  constexpr std::string_view names[] = {"f32", "f64", "bf16", "i32", "u8"};
  return names[static_cast<int>(dtype)];
}

constexpr bool is_floating(Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::f64 || dtype == Dtype::bf16;
}

inline std::ostream& operator<<(std::ostream& out, Dtype dtype) { return out << name(dtype); }

// Calls f(T{}) with the C++ type of `dtype`; error `dtype` when it is none of Ts.
//   visit<float, double>(x.dtype(), "gelu", [&](auto zero) { using T = decltype(zero); … });
template <class... Ts, class F>
void visit(Dtype dtype, std::string_view op, F&& f) {
  const bool found = ((dtype == dtype_of<Ts> ? (f(Ts{}), true) : false) || ...);
  require(found, Kind::dtype, op, "unsupported element type", dtype, "a supported one");
}

}  // namespace ebb
