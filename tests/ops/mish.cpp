#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return mish(in[0]); }
}  // namespace

TEST_CASE("mish: values and slopes at known points and in the far tails") {
  check_table([](const Tensor& x) { return mish(x); },
              {{0, 1, -88, -100, -1000, 10, 20, 1000, 3.4e38f, -3.4e38f, inff, qnanf},
               {0, 0.8650983883, -5.328e-37, 0, 0, 9.99999996, 20, 1000, 3.4e38, 0, inf, qnan},
               {0.6, 1.0490362201, -5.267e-37, 0, 0, 1.00000008, 1, 1, 1, 0, 1, qnan}});
}

TEST_CASE("mish: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
  check_gradients(f, {tensor<double>({-40, -5, 0, 5, 19.9, 20.1, 40}, {7})});
}

TEST_CASE("mish: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  check_sizes(f);
  check_bf16(f, {randn({1000}, 3, Dtype::f64, cpu_device, 3)});
  check_position_free([](const Tensor& x) { return mish(x); });
}

TEST_CASE("mish: an integer tensor is refused") {
  check_error(Kind::dtype, {"mish: x must be floating", "got i32"},
              [] { mish(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("mish: is x tanh(log(1 + exp(x)))") {
  const Tensor x = randn({1000}, 3);
  check_close(mish(x), x * tanh(log(1 + exp(x))), {1e-15, 4e-15}, "mish");
}
