#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return log(in[0]); }
}  // namespace

TEST_CASE("log: values at 0, below, at denormals and infinity") {
  check_table([](const Tensor& x) { return log(x); },
              {{1, 0, -0.0f, -1, 1e-40f, inff, qnanf, 3.4e38f},
               {0, -inf, -inf, qnan, -92.1034037, inf, qnan, 88.7219093},
               {1, inf, -inf, -1, inf, 0, qnan, 2.94117647e-39}});
}

TEST_CASE("log: gradients agree with finite differences") {
  check_gradients(f, {tensor<double>({0.5, 1, 2, 100}, {4})});
}

TEST_CASE("log: twins agree at ragged, 1 and 0 sizes, in bf16, and at any position") {
  const auto positive = [](std::int64_t n) {
    std::vector<double> v(static_cast<size_t>(n));
    for (size_t i = 0; i < v.size(); ++i) v[i] = std::exp(std::sin(double(i)) * 8);
    return tensor<double>(v, {n});
  };
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 40001}) check_twins(f, {positive(n)});
  check_bf16(f, {positive(1000)});
  check_position_free([](const Tensor& x) { return log(x); });
}

TEST_CASE("log: an integer tensor is refused") {
  check_error(Kind::dtype, {"log: x must be floating", "got i32"},
              [] { log(zeros({2}, {.dtype = Dtype::i32})); });
}

TEST_CASE("log: log(exp(x)) = x") {
  const Tensor x = randn({1000}, 3);
  check_close(log(exp(x)), x, {1e-15, 1e-15}, "inverse");
}
