#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Tensor f(const Tensors& in) { return outer_product(in[0], in[1]); }
}  // namespace

TEST_CASE("outer_product: known values and gradients") {
  for (const Device device : devices()) {
    const Tensor a = leaf(tensor<float>({1, 2}, {2}, device));
    const Tensor b = leaf(tensor<float>({3, -4, 5}, {3}, device));
    const Tensor y = outer_product(a, b);
    CHECK(y.shape() == Shape{2, 3});
    CHECK(values(y) == std::vector<double>{3, -4, 5, 6, -8, 10});
    y.backward(tensor<float>({1, 0, 2, 0, 1, 1}, {2, 3}, device));
    CHECK(values(a.grad()) == std::vector<double>{13, 1});
    CHECK(values(b.grad()) == std::vector<double>{1, 2, 4});
  }
}

TEST_CASE("outer_product: gradients agree with finite differences") {
  check_gradients(f, {randn({5}, 1), randn({7}, 2)});
  check_gradients([](const Tensors& in) { return outer_product(in[0], in[0]); }, {randn({6}, 3)});
}

TEST_CASE("outer_product: twins agree at ragged, 1 and 0 sizes") {
  // Gradients are sums: 16 · 2⁻²⁴ · Σ|dyᵢ bᵢ| + 1e-7, and |dyᵢ bᵢ| is 2/π on average.
  const auto sums_of = [](std::int64_t terms) {
    const double size = static_cast<double>(terms) * 0.64;
    return TwinTolerance{one_rounding, {long_sum * size + 1e-7, 0}};
  };
  const auto check = [&](std::int64_t m, std::int64_t n, std::uint64_t seed) {
    check_twins(f, {randn({m}, seed), randn({n}, seed + 1)}, sums_of(std::max(m, n)));
  };
  for (const std::int64_t m : {1, 3, 64, 65, 1000})
    for (const std::int64_t n : {1, 2, 4, 31, 64, 513, 1100}) check(m, n, 4);
  check(70001, 3, 6);
  check(2, 70000, 8);
  for (const auto& [m, n] : {std::pair{0, 3}, {3, 0}, {0, 0}})
    check_twins(f, {randn({m}, 10), randn({n}, 11)}, {exact, exact});
}

TEST_CASE("outer_product: bf16 results are those of f64 rounded") {
  for (const std::int64_t n : {1, 33, 64, 1000}) {
    const Tensor a = randn({200}, 16, Dtype::bf16), b = randn({n}, 17, Dtype::bf16);
    const Tensor dy = randn({200, n}, 18, Dtype::bf16);
    const Tensor wide_a = leaf(a.to(Dtype::f64)), wide_b = leaf(b.to(Dtype::f64));
    const Tensor wide = outer_product(wide_a, wide_b);
    wide.backward(dy.to(Dtype::f64));
    for (const Device device : devices()) {
      const Tensor in_a = leaf(a.to(device)), in_b = leaf(b.to(device));
      const Tensor y = outer_product(in_a, in_b);
      y.backward(dy.to(device));
      check_close(y, wide.detach(), {1e-30, 0x1p-8}, "y");
      check_close(in_a.grad(), wide_a.grad(), {1e-4, 0x1p-8}, "da");
      check_close(in_b.grad(), wide_b.grad(), {1e-4, 0x1p-8}, "db");
    }
  }
}

TEST_CASE("outer_product: gradients of a product of more than caches keep") {
  for (const Device device : devices()) {
    Tensor a = leaf(ones({4100}, {.device = device})), b = leaf(ones({4104}, {.device = device}));
    outer_product(a, b).backward(ones({4100, 4104}, {.device = device}));
    CHECK(values(a.grad()) == std::vector<double>(4100, 4104));
    CHECK(values(b.grad()) == std::vector<double>(4104, 4100));
  }
}

TEST_CASE("outer_product: only the gradient that is asked for is made") {
  for (const Device device : devices())
    for (const bool first : {true, false}) {
      Tensor a = randn({70}, 12, Dtype::f64, device);
      Tensor b = randn({33}, 13, Dtype::f64, device);
      (first ? a : b).set_requires_grad(true);
      outer_product(a, b).backward(ones({70, 33}, a.options()));
      CHECK(a.grad().defined() == first);
      CHECK(b.grad().defined() == !first);
    }
}

TEST_CASE("outer_product: it is the matrix product of a column and a row") {
  for (const Device device : devices()) {
    const Tensor a = randn({40}, 14, Dtype::f64, device);
    const Tensor b = randn({50}, 15, Dtype::f64, device);
    check_close(f({a, b}), matmul(reshape(a, {40, 1}), reshape(b, {1, 50})), exact, "y");
  }
}

TEST_CASE("outer_product: other ranks are refused") {
  check_error(Kind::shape, {"outer_product: a must be [m]; got [2,3]"}, [] {
    f({zeros({2, 3}), zeros({2})});
  });
  check_error(Kind::shape, {"outer_product: b must be [n]; got []"}, [] {
    f({zeros({2}), zeros({})});
  });
  check_error(Kind::dtype, {"outer_product: a and b differ in dtype"}, [] {
    f({zeros({3}), zeros({3}, {.dtype = Dtype::f64})});
  });
}
