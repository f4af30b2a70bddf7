#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return invert_colors(in[0]); }
}  // namespace

TEST_CASE("invert_colors: is max - x, exactly") {
  check_table(
      [](const Tensor& x) { return invert_colors(x); },
      {{0, 1, 0.25f, -1, inff, qnanf}, {1, 0, 0.75, 2, -inf, qnan}, {-1, -1, -1, -1, -1, -1}},
      {exact, exact});
  for (const Device device : devices())
    CHECK(invert_colors(tensor<float>({3}, {1}, device), {.max = 10}).item() == 7);
}

TEST_CASE("invert_colors: of u8 is 255 - x, and 0 where x is above max") {
  for (const Device device : devices()) {
    std::vector<std::uint8_t> x;
    for (int i = 0; i < 20000; ++i) x.push_back(static_cast<std::uint8_t>(i * 7));
    const Tensor t = tensor<std::uint8_t>(x, {20000}, device);
    const auto y = invert_colors(t).to_vector<std::uint8_t>();
    const auto z = invert_colors(t, {.max = 100}).to_vector<std::uint8_t>();
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(y[i] == 255 - x[i]);
      CHECK(z[i] == std::max(0, 100 - x[i]));
    }
  }
}

TEST_CASE("invert_colors: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
}

TEST_CASE("invert_colors: twins agree at ragged, 1 and 0 sizes, and in bf16") {
  check_sizes(f, 1, {one_rounding, exact});
  check_bf16(f, {randn({1000}, 1)});
}

TEST_CASE("invert_colors: twice is the identity") {
  const Tensor x = uniform({1000}, 0.5, 1, default_generator());
  check_close(invert_colors(invert_colors(x)), x, exact, "twice");
}

TEST_CASE("invert_colors: bad max and integers are refused") {
  for (const double max : {0.0, -1.0, qnan, inf})
    check_error(Kind::value, {"invert_colors: bad max", "a positive number"},
                [&] { invert_colors(zeros({2}), {.max = max}); });
  check_error(Kind::value, {"invert_colors: bad max for u8", "got 0.5"},
              [] { invert_colors(zeros({2}, {Dtype::u8}), {.max = 0.5}); });
  check_error(Kind::dtype, {"invert_colors: x is not an image", "got i32"},
              [] { invert_colors(zeros({2}, {Dtype::i32})); });
}
