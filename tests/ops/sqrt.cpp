#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return sqrt(in[0]); }
}  // namespace

TEST_CASE("sqrt: is correctly rounded, at denormals too") {
  check_table([](const Tensor& x) { return sqrt(x); },
              {{4, 2, 0, -0.0f, -1, inff, qnanf},
               {2, 1.41421354, 0, 0, qnan, inf, qnan},
               {0.25, 0.353553391, inf, -inf, qnan, 0, qnan}});
  for (const Device device : devices())
    CHECK(sqrt(tensor<float>({1e-40f}, {1}, device)).to_vector<float>()[0] == std::sqrt(1e-40f));
}

TEST_CASE("sqrt: gradients agree with finite differences") {
  check_gradients(f, {tensor<double>({0.5, 1, 2, 100}, {4})});
}

TEST_CASE("sqrt: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  const auto positive = [](std::int64_t n) {
    std::vector<double> v(static_cast<size_t>(n));
    for (size_t i = 0; i < v.size(); ++i) v[i] = std::exp(std::sin(double(i)) * 8);
    return tensor<double>(v, {n});
  };
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 40001})
    check_twins(f, {positive(n)}, {one_rounding, {0, 2.4e-7}});
  check_bf16(f, {positive(1000)});
  check_position_free([](const Tensor& x) { return sqrt(x); });
}

TEST_CASE("sqrt: an integer tensor is refused") {
  check_error(Kind::dtype, {"sqrt: x must be floating", "got i32"},
              [] { sqrt(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("sqrt: of a square is the number, exactly") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 3, 10, 4095, 0.5f}, {5}, device);
    check_close(sqrt(mul(x, x)), x, exact, "root");
  }
}
