#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return silu(in[0]); }
}  // namespace

TEST_CASE("silu: values at known points and in the far tails") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({0, 1, -1, -88, -1000, 3.4e38f}, {6}, device);
    const Tensor expected =
        tensor<double>({0, 0.7310585786, -0.2689414214, -5.328e-37, 0, 3.4e38}, {6});
    check_close(silu(x), expected, pointwise, "silu");
  }
}

TEST_CASE("silu: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 5}, 1)});
  check_gradients(f, {tensor<double>({-40, -5, -0.01, 0, 0.01, 5, 40}, {7})});
}

TEST_CASE("silu: twins agree at ragged, 1 and 0 sizes") {
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 70001})
    check_twins(f, {randn({n}, 2, Dtype::f64, cpu_device, 5)});
}

TEST_CASE("silu: an integer tensor is refused") {
  check_error(Kind::dtype, {"silu: x must be floating", "got i32"},
              [] { silu(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("silu: silu(x) - silu(-x) = x") {
  const Tensor x = randn({1000}, 3);
  const auto a = values(silu(x));
  const auto b = values(silu(tensor<double>(
      [&] {
        auto v = values(x);
        for (double& e : v) e = -e;
        return v;
      }(),
      {1000})));
  const auto v = values(x);
  for (size_t i = 0; i < v.size(); ++i) CHECK(std::abs(a[i] - b[i] - v[i]) <= 1e-14);
}
