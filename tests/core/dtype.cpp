#include "ebb/core/dtype.h"

#include <cmath>
#include <limits>

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {
float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }
}  // namespace

TEST_CASE("dtype: bf16 rounds to the nearest, ties to even") {
  const auto rounded = [](std::uint32_t bits) { return bf16(from_bits(bits)).bits; };
  CHECK(rounded(0x3f800000) == 0x3f80);
  CHECK(rounded(0x3f807fff) == 0x3f80);  // just below half
  CHECK(rounded(0x3f808000) == 0x3f80);  // half: to even, down
  CHECK(rounded(0x3f808001) == 0x3f81);  // just above half
  CHECK(rounded(0x3f818000) == 0x3f82);  // half: to even, up
  CHECK(rounded(0xbf818000) == 0xbf82);
  CHECK(rounded(0x3fffffff) == 0x4000);  // carries into the exponent
  CHECK(rounded(0x80000000) == 0x8000);  // -0
}

TEST_CASE("dtype: bf16 keeps denormals, overflows to infinity, and keeps NaN a NaN") {
  CHECK(static_cast<float>(bf16(from_bits(0x00010000))) == from_bits(0x00010000));
  CHECK(static_cast<float>(bf16(from_bits(0x00008001))) == from_bits(0x00010000));
  CHECK(static_cast<float>(bf16(from_bits(0x00000001))) == 0);
  CHECK(std::isinf(static_cast<float>(bf16(std::numeric_limits<float>::max()))));
  CHECK(static_cast<float>(bf16(-INFINITY)) == -INFINITY);
  CHECK(static_cast<float>(bf16(from_bits(0x7f7f7fff))) == from_bits(0x7f7f0000));
  for (const std::uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u})
    CHECK(std::isnan(static_cast<float>(bf16(from_bits(nan)))));
}

TEST_CASE("dtype: every bf16 number survives the way through f32") {
  int changed = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    bf16 x;
    x.bits = static_cast<std::uint16_t>(bits);
    const auto value = static_cast<float>(x);
    changed += !std::isnan(value) && bf16(value).bits != bits;
  }
  CHECK(changed == 0);
}

TEST_CASE("dtype: conversion rounds to bf16 and saturates to integers, on every device") {
  for (const Device device : devices()) {
    const Tensor x =
        tensor<float>({1.75f, -1.75f, 300, -3e9f, 3e9f, NAN, INFINITY, -INFINITY}, {8}, device);
    CHECK(x.to(Dtype::i32).to_vector<std::int32_t>() ==
          std::vector<std::int32_t>{1, -1, 300, INT32_MIN, INT32_MAX, 0, INT32_MAX, INT32_MIN});
    CHECK(x.to(Dtype::u8).to_vector<std::uint8_t>() ==
          std::vector<std::uint8_t>{1, 0, 255, 0, 255, 0, 255, 0});
    CHECK(x.to(Dtype::i32).to(Dtype::u8).to_vector<std::uint8_t>() ==
          std::vector<std::uint8_t>{1, 0, 255, 0, 255, 0, 255, 0});
    const Tensor y = tensor<float>({from_bits(0x3f818000), 3.4e38f}, {2}, device).to(Dtype::bf16);
    CHECK(y.to(Dtype::f32).to_vector<float>() ==
          std::vector<float>{from_bits(0x3f820000), INFINITY});
  }
}
