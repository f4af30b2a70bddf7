#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor f(const Tensors& in) { return linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor()); }

// As for matmul: sums of k products of normal numbers.
Tolerance sum_of(std::int64_t k) { return {2e-7 + 16 * 0x1p-24 * 0.8 * static_cast<double>(k), 0}; }

}  // namespace

TEST_CASE("linear: literal values with and without a bias") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 2, 3, 4}, {2, 2}, device);
    const Tensor w = tensor<float>({1, 0, 0, 1, 1, 1}, {3, 2}, device);
    const Tensor b = tensor<float>({10, 20, 30}, {3}, device);
    check_close(linear(x, w), tensor<double>({1, 2, 3, 3, 4, 7}, {2, 3}), exact, "x wT");
    check_close(linear(x, w, b), tensor<double>({11, 22, 33, 13, 24, 37}, {2, 3}), exact, "+ b");
  }
}

TEST_CASE("linear: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 4}, 1), randn({5, 4}, 2), randn({5}, 3)});
  check_gradients(f, {randn({2, 3, 4}, 4), randn({2, 4}, 5)});
}

TEST_CASE("linear: twins agree at ragged, 1 and 0 sizes and in long batches") {
  const std::int64_t sizes[][3] = {{1, 1, 1},  {0, 3, 2},      {4, 0, 3},   {3, 2, 0},
                                   {7, 33, 5}, {64, 10, 1200}, {700, 65, 9}};  // rows, out, in
  for (const auto& [rows, out, in] : sizes)
    check_twins(f, {randn({rows, in}, 6), randn({out, in}, 7), randn({out}, 8)},
                {sum_of(in), sum_of(std::max(rows, out))});
}

TEST_CASE("linear: an empty batch gives an empty result and zero gradients for the weights") {
  for (const Device device : devices()) {
    const TensorOptions there{Dtype::f32, device};
    Tensor w = leaf(ones({3, 2}, there));
    Tensor b = leaf(ones({3}, there));
    linear(zeros({0, 2}, there), w, b).backward(zeros({0, 3}, there));
    check_close(w.grad(), zeros({3, 2}), exact, "dw");
    check_close(b.grad(), zeros({3}), exact, "db");
  }
}

TEST_CASE("linear: no features give the bias") {
  for (const Device device : devices()) {
    const TensorOptions there{Dtype::f32, device};
    const Tensor b = tensor<float>({1, 2}, {2}, device);
    check_close(linear(zeros({2, 0}, there), zeros({2, 0}, there), b),
                tensor<double>({1, 2, 1, 2}, {2, 2}), exact, "bias");
  }
}

TEST_CASE("linear: a batch of rows gives each row's own result") {
  for (const Device device : devices()) {
    const Tensor x = randn({2, 3, 8}, 9).to(device);
    const Tensor w = randn({4, 8}, 10).to(device);
    const Tensor flat(x.storage(), {6, 8}, x.dtype());
    const Tensor y = linear(x, w);
    CHECK(y.shape() == Shape{2, 3, 4});
    CHECK(values(y) == values(linear(flat, w)));
  }
}

TEST_CASE("linear: arguments that do not fit are refused") {
  const auto refuse = [](const char* part, const Shape& x, const Shape& w, const Tensor& b) {
    check_error(Kind::shape, {"linear: ", part}, [&] { linear(zeros(x), zeros(w), b); });
  };
  refuse("x must be [...,in]", {3}, {2, 3}, {});
  refuse("weight must be [out,in]", {2, 3}, {3}, {});
  refuse("differ in features", {2, 3}, {3, 2}, {});
  refuse("bias", {2, 3}, {4, 3}, zeros({3}));
  check_error(Kind::dtype, {"linear: x must be floating"}, [] {
    linear(zeros({2, 2}, {.dtype = Dtype::u8}), zeros({2, 2}));
  });
}
