#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return rgb_to_grayscale(in[0]); }
}  // namespace

TEST_CASE("rgb_to_grayscale: channels come in the order R, G, B, and white is 1") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1}, {3, 2, 2}, device);
    const Tensor y = rgb_to_grayscale(x);
    CHECK(y.shape() == Shape{1, 2, 2});
    check_close(y, tensor<double>({0.299, 0.587, 0.114, 1}, {1, 2, 2}), one_rounding, "gray");
    const Tensor z = rgb_to_grayscale(x, {.weights = {0, 0, 2}});
    check_close(z, tensor<double>({0, 0, 2, 2}, {1, 2, 2}), exact, "blue");
  }
}

TEST_CASE("rgb_to_grayscale: u8 images are rounded to nearest and kept in range") {
  for (const Device device : devices()) {
    const Tensor x =
        tensor<std::uint8_t>({255, 10, 0, 255, 20, 0, 255, 30, 1}, {1, 3, 1, 3}, device);
    CHECK(rgb_to_grayscale(x).to_vector<std::uint8_t>() == std::vector<std::uint8_t>{255, 18, 0});
    CHECK(rgb_to_grayscale(x, {.weights = {1, 1, 1}}).to_vector<std::uint8_t>() ==
          std::vector<std::uint8_t>{255, 60, 1});
    const Tensor large = uniform({2, 3, 16, 33}, 0, 255.9, default_generator()).to(Dtype::u8);
    const auto bytes = values(rgb_to_grayscale(large.to(device)));
    const auto real = values(rgb_to_grayscale(large.to(Dtype::f64)));
    for (size_t i = 0; i < bytes.size(); ++i) CHECK(std::abs(bytes[i] - real[i]) <= 0.5001);
  }
}

TEST_CASE("rgb_to_grayscale: NaN stays in its pixel") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({qnanf, 0, 0, 0, 0, 0}, {3, 1, 2}, device);
    check_close(rgb_to_grayscale(x), tensor<double>({qnan, 0}, {1, 1, 2}), exact, "gray");
  }
}

TEST_CASE("rgb_to_grayscale: gradients agree with finite differences") {
  check_gradients(f, {randn({2, 3, 2, 3}, 1)});
  check_gradients(f, {randn({3, 2, 2}, 1)});
}

TEST_CASE("rgb_to_grayscale: twins agree at ragged, 1 and 0 sizes, and in bf16") {
  const std::vector<Shape> shapes = {{3, 1, 1},    {2, 3, 5, 7},   {0, 3, 4, 4},
                                     {2, 3, 0, 4}, {2, 3, 64, 65}, {5, 3, 64, 64}};
  for (const Shape& s : shapes) check_twins(f, {randn(s, 1)}, {row, one_rounding});
  for (const Device device : devices()) {
    const Tensor x = uniform({2, 3, 16, 16}, 0, 1, default_generator()).to(Dtype::bf16).to(device);
    check_close(f({x}), f({x.to(cpu_device).to(Dtype::f64)}), bf16_rounding, "bf16");
  }
}

TEST_CASE("rgb_to_grayscale: wrong channels, weights and dtypes are refused") {
  for (const std::int64_t c : {1, 2, 4})
    check_error(Kind::shape, {"rgb_to_grayscale: x must have 3 channels"}, [&] {
      rgb_to_grayscale(zeros({2, c, 4, 4}));
    });
  check_error(Kind::shape, {"rgb_to_grayscale: x must be [N,3,H,W] or [3,H,W]"}, [] {
    rgb_to_grayscale(zeros({3, 4}));
  });
  check_error(Kind::value, {"rgb_to_grayscale: weights must be finite"}, [] {
    rgb_to_grayscale(zeros({3, 2, 2}), {.weights = {0.5, qnan, 0.5}});
  });
  check_error(Kind::dtype, {"rgb_to_grayscale: x is not an image", "got i32"}, [] {
    rgb_to_grayscale(zeros({3, 2, 2}, {Dtype::i32}));
  });
}
