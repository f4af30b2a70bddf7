#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return tanh(in[0]); }
}  // namespace

TEST_CASE("tanh: values and slopes at known points and in the far tails") {
  check_table([](const Tensor& x) { return tanh(x); },
              {{0, 1, -0.5f, 1000, -1000, inff, -inff, qnanf, 3.4e38f},
               {0, 0.7615941560, -0.4621171573, 1, -1, 1, -1, qnan, 1},
               {1, 0.4199743416, 0.7864477329, 0, 0, 0, 0, qnan, 0}});
}

TEST_CASE("tanh: small arguments keep their relative precision") {
  for (const Device device : devices()) {
    std::vector<float> x;
    for (float v = 1e-40f; v < 20; v *= 1.5f) x.push_back(v);
    const Tensor t = tensor<float>(x, {std::int64_t(x.size())}, device);
    check_close(tanh(t), tanh(t.to(cpu_device).to(Dtype::f64)), {1.5e-45, 4.8e-7}, "tanh");
  }
}

TEST_CASE("tanh: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
  check_gradients(f, {tensor<double>({-40, -5, 0, 5, 40}, {5})});
}

TEST_CASE("tanh: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  check_sizes(f);
  check_bf16(f, {randn({1000}, 3, Dtype::f64, cpu_device, 3)});
  check_position_free([](const Tensor& x) { return tanh(x); });
}

TEST_CASE("tanh: an integer tensor is refused") {
  check_error(Kind::dtype, {"tanh: x must be floating", "got i32"},
              [] { tanh(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("tanh: tanh(x) = 2 sigmoid(2x) - 1") {
  const Tensor x = randn({1000}, 3);
  check_close(tanh(x), 2 * sigmoid(2 * x) - 1, {1e-15, 1e-15}, "tanh");
}
