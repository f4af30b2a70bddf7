#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return swiglu(in[0], in[1]); }
}  // namespace

TEST_CASE("swiglu: values and both gradients at known points and in the far tails") {
  for (const Device device : devices()) {
    const Tensor gate = leaf(tensor<float>({1000, -1000, -88, 3e38f, 0, 1}, {6}, device));
    const Tensor up = leaf(tensor<float>({2, 2, 1, 2, inff, 3}, {6}, device));
    const Tensor y = swiglu(gate, up);
    check_close(y, tensor<double>({2000, 0, -5.328e-37, inf, qnan, 2.1931757359}, {6}), pointwise,
                "swiglu");
    y.backward(ones_like(y));
    check_close(gate.grad(), tensor<double>({2, 0, -5.268e-37, 2, inf, 2.7830115357}, {6}),
                pointwise_gradient, "dgate");
    check_close(up.grad(), tensor<double>({1000, 0, -5.328e-37, 3e38, 0, 0.7310585786}, {6}),
                pointwise_gradient, "dup");
  }
}

TEST_CASE("swiglu: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1), randn({3, 5}, 2)});
}

TEST_CASE("swiglu: twins agree at ragged, 1 and 0 sizes, and in bf16") {
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 40001})
    check_twins(f, {randn({n}, 1, Dtype::f64, cpu_device, 3), randn({n}, 2)});
  check_bf16(f, {randn({1000}, 3), randn({1000}, 4)});
}

TEST_CASE("swiglu: is silu(gate) times up") {
  const Tensor gate = randn({1000}, 3);
  const Tensor up = randn({1000}, 4);
  check_close(swiglu(gate, up), silu(gate) * up, {0, 4e-16}, "swiglu");
}

TEST_CASE("swiglu: integers, different dtypes and different shapes are refused") {
  check_error(Kind::dtype, {"swiglu: gate must be floating", "got i32"},
              [] { swiglu(zeros({2}, {.dtype = Dtype::i32}), zeros({2})); });
  check_error(Kind::dtype, {"swiglu: gate and up differ in dtype"},
              [] { swiglu(zeros({2}), zeros({2}, {.dtype = Dtype::f64})); });
  check_error(Kind::shape, {"swiglu: up has the wrong shape", "got [3]", "expected [2]"},
              [] { swiglu(zeros({2}), zeros({3})); });
}
