#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return sigmoid(in[0]); }
}  // namespace

TEST_CASE("sigmoid: values and slopes at known points and in the far tails") {
  check_table([](const Tensor& x) { return sigmoid(x); },
              {{0, 1, 1000, -1000, inff, -inff, qnanf, 3.4e38f, -3.4e38f},
               {0.5, 0.7310585786, 1, 0, 1, 0, qnan, 1, 0},
               {0.25, 0.1966119332, 0, 0, 0, 0, qnan, 0, 0}});
}

TEST_CASE("sigmoid: denormal results are not flushed") {
  for (const Device device : devices()) {
    const double y = values(sigmoid(tensor<float>({-88}, {1}, device)))[0];
    CHECK(std::abs(y / 6.0546018e-39 - 1) <= 1e-5);
  }
}

TEST_CASE("sigmoid: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
  check_gradients(f, {tensor<double>({-40, -5, 0, 5, 40}, {5})});
}

TEST_CASE("sigmoid: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  check_sizes(f);
  check_bf16(f, {randn({1000}, 3, Dtype::f64, cpu_device, 3)});
  check_position_free([](const Tensor& x) { return sigmoid(x); });
}

TEST_CASE("sigmoid: an integer tensor is refused") {
  check_error(Kind::dtype, {"sigmoid: x must be floating", "got i32"},
              [] { sigmoid(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("sigmoid: sigmoid(x) + sigmoid(-x) = 1") {
  const Tensor x = randn({1000}, 3);
  check_close(add(sigmoid(x), sigmoid(neg(x))), ones_like(x), {1e-15, 0}, "sum");
}
