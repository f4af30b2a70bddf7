#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return exp(in[0]); }
}  // namespace

TEST_CASE("exp: values over the whole range, denormals and infinities included") {
  check_table([](const Tensor& x) { return exp(x); },
              {{0, 1, 88, 89, -104, -inff, inff, qnanf, -3.4e38f, 3.4e38f},
               {1, 2.718281828, 1.65163627e38, inf, 0, 0, inf, qnan, 0, inf},
               {1, 2.718281828, 1.65163627e38, inf, 0, 0, inf, qnan, 0, inf}});
}

TEST_CASE("exp: f32 is within 4 ulp, denormal results within the smallest of them") {
  for (const Device device : devices()) {
    std::vector<float> x;
    for (int i = -1030; i <= 887; ++i) x.push_back(float(i) / 10);
    const Tensor t = tensor<float>(x, {std::int64_t(x.size())}, device);
    const Tensor reference = exp(t.to(cpu_device).to(Dtype::f64));
    check_close(exp(t), reference, {1.5e-45, 4.8e-7}, "exp");
  }
}

TEST_CASE("exp: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
}

TEST_CASE("exp: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  check_sizes(f);
  check_bf16(f, {randn({1000}, 3, Dtype::f64, cpu_device, 3)});
  check_position_free([](const Tensor& x) { return exp(x); });
}

TEST_CASE("exp: an integer tensor is refused") {
  check_error(Kind::dtype, {"exp: x must be floating", "got i32"},
              [] { exp(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("exp: exp(x) exp(-x) = 1") {
  const Tensor x = randn({1000}, 3);
  check_close(mul(exp(x), exp(neg(x))), ones_like(x), {4e-15, 0}, "product");
}
