#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return relu(in[0]); }
}  // namespace

TEST_CASE("relu: is exact, 0 has slope 0, and NaN stays NaN") {
  check_table([](const Tensor& x) { return relu(x); },
              {{0, -inff, inff, qnanf, 1e-40f, -1e-40f, -3, 3},
               {0, 0, inf, qnan, double(1e-40f), 0, 0, 3},
               {0, 0, 1, 1, 1, 0, 0, 1}},
              {exact, exact});
}

TEST_CASE("relu: gradients agree with finite differences") {
  check_gradients(f, {tensor<double>({-40, -5, -0.01, 0.01, 5, 40}, {6})}, {.atol = 1e-10});
}

TEST_CASE("relu: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 40001})
    check_twins(f, {randn({n}, 2)}, {exact, exact});
  check_bf16(f, {randn({1000}, 3)});
  check_position_free([](const Tensor& x) { return relu(x); });
}

TEST_CASE("relu: an integer tensor is refused") {
  check_error(Kind::dtype, {"relu: x must be floating", "got i32"},
              [] { relu(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("relu: relu(x) - relu(-x) = x") {
  for (const Device device : devices()) {
    const Tensor x = randn({1000}, 3).to(device);
    check_close(sub(relu(x), relu(neg(x))), x, exact, "difference");
  }
}
