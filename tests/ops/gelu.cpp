#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return gelu(in[0]); }
}  // namespace

TEST_CASE("gelu: tanh form, values and slopes at known points and in the far tails") {
  check_table([](const Tensor& x) { return gelu(x); },
              {{0, 1, -1, 1000, -1000, 3.4e38f, -3.4e38f, inff, qnanf},
               {0, 0.8411919906, -0.1588080094, 1000, 0, 3.4e38, 0, inf, qnan},
               {0.5, 1.0829640838, -0.0829640838, 1, 0, 1, 0, 1, qnan}});
}

TEST_CASE("gelu: exact form, values and slopes at known points and in the far tails") {
  const auto exactly = [](const Tensor& x) { return gelu(x, {.approximate = "none"}); };
  check_table(exactly, {{0, 1, -1, -10, 1000, 3.4e38f, -3.4e38f, qnanf},
                        {0, 0.8413447461, -0.1586552539, 0, 1000, 3.4e38, 0, qnan},
                        {0.5, 1.0833154706, -0.0833154706, 0, 1, 1, 0, qnan}});
}

TEST_CASE("gelu: twins of the exact form agree, its gradient and its lower tail too") {
  const Function exactly = [](const Tensors& in) { return gelu(in[0], {.approximate = "none"}); };
  check_gradients(exactly, {randn({3, 5}, 1)});
  check_gradients(exactly, {tensor<double>({-40, -5, -0.01, 0, 0.01, 5, 40}, {7})});
  check_sizes(exactly);
  check_bf16(exactly, {randn({1000}, 3, Dtype::f64, cpu_device, 3)});
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({-1, -2, -4, -6, -8}, {5}, device);
    check_close(exactly({x}), exactly({x.to(cpu_device).to(Dtype::f64)}), {0, 8e-6}, "tail");
  }
}

TEST_CASE("gelu: an unknown approximation is refused") {
  check_error(Kind::value, {"gelu: unknown approximation", "got erf", "tanh or none"},
              [] { gelu(ones({2}), {.approximate = "erf"}); });
}

TEST_CASE("gelu: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
  check_gradients(f, {tensor<double>({-40, -5, -0.01, 0, 0.01, 5, 40}, {7})});
}

TEST_CASE("gelu: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  check_sizes(f);
  check_bf16(f, {randn({1000}, 3, Dtype::f64, cpu_device, 3)});
  check_position_free([](const Tensor& x) { return gelu(x); });
}

TEST_CASE("gelu: an integer tensor is refused") {
  check_error(Kind::dtype, {"gelu: x must be floating", "got i32"},
              [] { gelu(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("gelu: the two forms differ by less than 5e-4, and do differ") {
  const Tensor x = randn({1000}, 3);
  const auto a = values(gelu(x));
  const auto b = values(gelu(x, {.approximate = "none"}));
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = worse(worst, std::abs(a[i] - b[i]));
  CHECK(worst <= 5e-4);
  CHECK(worst >= 1e-4);
}
