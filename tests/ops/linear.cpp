#include "ebb/ops/linalg/gemm.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor f(const Tensors& in) {
  const auto at = [&](size_t i) { return i < in.size() ? in[i] : Tensor(); };
  return linear(in[0], in[1], at(2), at(3));
}

// As for matmul: sums of k products of normal numbers.
Tolerance sum_of(std::int64_t k) { return {2e-7 + long_sum * 0.8 * static_cast<double>(k), 0}; }

}  // namespace

TEST_CASE("linear: literal values with and without a bias") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 2, 3, 4}, {2, 2}, device);
    const Tensor w = tensor<float>({1, 0, 0, 1, 1, 1}, {3, 2}, device);
    const Tensor b = tensor<float>({10, 20, 30}, {3}, device);
    check_close(linear(x, w), tensor<double>({1, 2, 3, 3, 4, 7}, {2, 3}), exact, "x wT");
    check_close(linear(x, w, b), tensor<double>({11, 22, 33, 13, 24, 37}, {2, 3}), exact, "+ b");
    const Tensor r = tensor<float>({1, 2, 3, 4, 5, 6}, {2, 3}, device);
    check_close(linear(x, w, b, r), tensor<double>({12, 24, 36, 17, 29, 43}, {2, 3}), exact, "+ r");
    check_close(linear(x, w, {}, r), tensor<double>({2, 4, 6, 7, 9, 13}, {2, 3}), exact, "xwT + r");
    check_close(r, tensor<double>({1, 2, 3, 4, 5, 6}, {2, 3}), exact, "r as it was");
  }
}

TEST_CASE("linear: gradients agree with finite differences") {
  check_gradients(f, {randn({3, 4}, 1), randn({5, 4}, 2), randn({5}, 3)});
  check_gradients(f, {randn({2, 3, 4}, 4), randn({2, 4}, 5)});
  check_gradients(f, {randn({3, 4}, 1), randn({5, 4}, 2), randn({5}, 3), randn({3, 5}, 4)});
  check_gradients(f, {randn({2, 3, 4}, 4), randn({2, 4}, 5), {}, randn({2, 3, 2}, 6)});
}

TEST_CASE("linear: twins agree at ragged, 1 and 0 sizes and in long batches") {
  const std::int64_t sizes[][3] = {{1, 1, 1},  {0, 3, 2},      {4, 0, 3},   {3, 2, 0},
                                   {7, 33, 5}, {64, 10, 1200}, {700, 65, 9}};  // rows, out, in
  for (const auto& [rows, out, in] : sizes)
    for (const bool with_residual : {false, true}) {
      Tensors all = {randn({rows, in}, 6), randn({out, in}, 7), randn({out}, 8)};
      if (with_residual) all.push_back(randn({rows, out}, 9));
      check_twins(f, all, {sum_of(in), sum_of(std::max(rows, out))});
    }
}

// Small whole numbers, whose sums are exact in any order.
TEST_CASE("linear: the gradients of weight and bias count each of many rows once") {
  constexpr size_t rows = 1031, in = 3, out = 67;
  std::vector<float> x, dy;
  for (size_t i = 0; i < rows * in; ++i) x.push_back(static_cast<float>(i * i % 7) - 3);
  for (size_t i = 0; i < rows * out; ++i) dy.push_back(static_cast<float>(i * i % 5) - 2);
  std::vector<double> dw(out * in), db(out);
  for (size_t i = 0; i < rows * out; ++i) {
    db[i % out] += dy[i];
    for (size_t c = 0; c < in; ++c) dw[i % out * in + c] += dy[i] * x[i / out * in + c];
  }
  for (const Device device : devices()) {
    const Tensor w = leaf(zeros({out, in}, {.device = device}));
    const Tensor b = leaf(zeros({out}, {.device = device}));
    linear(tensor(x, {rows, in}, device), w, b).backward(tensor(dy, {rows, out}, device));
    CHECK(values(w.grad()) == dw);
    CHECK(values(b.grad()) == db);
  }
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
  check_error(Kind::shape, {"linear: residual has the wrong shape", "got [4]", "[2,4]"}, [] {
    linear(zeros({2, 3}), zeros({4, 3}), {}, zeros({4}));
  });
  check_error(Kind::dtype, {"linear: x must be floating"}, [] {
    linear(zeros({2, 2}, {.dtype = Dtype::u8}), zeros({2, 2}));
  });
}

// Large products of bf16 are measured at their first call. Of these sums, over a long k, candidates
// have several orders; zeros would not tell them apart.
TEST_CASE("linear: the bits do not depend on what a product was first measured with") {
  for (const Device device : devices()) {
    if (!device.is_cuda()) continue;
    const TensorOptions there{Dtype::bf16, device};
    const auto random = [&](std::int64_t columns, std::uint64_t seed) {
      Generator generator(seed);
      return uniform({32768, columns}, -1, 1, generator, there);
    };
    const Tensor x = random(256, 1), dy = random(384, 2);
    const auto dw = [&](const Tensor& x, const Tensor& dy) {
      const Tensor w = leaf(zeros({384, 256}, there));
      linear(x, w).backward(dy);
      return values(w.grad());
    };
    const auto after = [&](const Tensor& x0, const Tensor& dy0) {
      if constexpr (has_cuda) gpu::forget_plans(device);
      dw(x0, dy0);
      return dw(x, dy);
    };
    const auto expected = after(x, dy);
    for (int i = 0; i < 3; ++i) {
      CHECK(after(zeros_like(x), zeros_like(dy)) == expected);
      CHECK(after(ones_like(x), ones_like(dy)) == expected);
    }
  }
}
