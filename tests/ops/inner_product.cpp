#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Tensor f(const Tensors& in) { return inner_product(in[0], in[1]); }

// On the CPU a product is rounded to f32, and three times what it adds up to.
TwinTolerance four_roundings(const Tensors& in) {
  const std::vector<double> a = values(in[0]), b = values(in[1]);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] * b[i]);
  return {{4 * 0x1p-24 * sum, 0x1p-24}, one_rounding};
}

}  // namespace

TEST_CASE("inner_product: known values and gradients") {
  for (const Device device : devices()) {
    const Tensor a = leaf(tensor<float>({1, 2, 3}, {3}, device));
    const Tensor b = leaf(tensor<float>({4, -5, 6}, {3}, device));
    const Tensor y = inner_product(a, b);
    CHECK(y.shape() == Shape{});
    CHECK(y.item() == 12);
    y.backward(full({}, 2, {.device = device}));
    CHECK(values(a.grad()) == std::vector<double>{8, -10, 12});
    CHECK(values(b.grad()) == std::vector<double>{2, 4, 6});
  }
}

TEST_CASE("inner_product: the product of nothing is 0") {
  for (const Device device : devices())
    CHECK(f({zeros({0}, {.device = device}), zeros({0}, {.device = device})}).item() == 0);
}

TEST_CASE("inner_product: large terms that cancel leave the small one") {
  for (const Device device : devices()) {
    const Tensor a = tensor<float>({3e7f, 1, -3e7f}, {3}, device);
    const Tensor b = tensor<float>({3e7f, 3, 3e7f}, {3}, device);
    CHECK(f({a, b}).item() == 3);
  }
}

// Products are 1 and -1 but for a few that make the sum 7 or 8, which bf16 has, and no slice's is.
TEST_CASE("inner_product: of more than caches keep, nothing is lost") {
  const std::pair<Dtype, std::int64_t> cases[] = {{Dtype::f32, (std::int64_t{1} << 24) + 4004},
                                                  {Dtype::f32, (std::int64_t{1} << 24) + 4003},
                                                  {Dtype::bf16, (std::int64_t{1} << 25) + 4008}};
  for (const auto& [dtype, n] : cases) {
    std::vector<float> a(static_cast<size_t>(n)), b(a.size());
    std::int64_t total = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      a[i] = i * i % 7 < 3 ? -1 : 1;
      b[i] = i / 1000 % 3 == 0 ? -1 : 1;
      total += static_cast<std::int64_t>(a[i] * b[i]);
    }
    for (size_t i = 0; total < 7 || total > 8; ++i) {
      if ((a[i] * b[i] > 0) != (total > 8)) continue;
      b[i] = -b[i];
      total += total > 8 ? -2 : 2;
    }
    for (const Device device : devices()) {
      const auto on = [&](const std::vector<float>& v) {
        return tensor<float>(v, {n}, device).to(dtype);
      };
      CHECK(f({on(a), on(b)}).item() == static_cast<double>(total));
    }
  }
}

TEST_CASE("inner_product: products beyond f32 cancel, in bf16 too") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor a = tensor<float>({0x1p100f, 0x1p100f, 3}, {3}, device).to(dtype);
      const Tensor b = tensor<float>({0x1p100f, -0x1p100f, 0}, {3}, device).to(dtype);
      CHECK(f({a, b}).item() == 0);
    }
}

TEST_CASE("inner_product: gradients agree with finite differences") {
  check_gradients(f, {randn({7}, 1), randn({7}, 2)});
  check_gradients([](const Tensors& in) { return inner_product(in[0], in[0]); }, {randn({5}, 3)});
}

TEST_CASE("inner_product: twins agree at ragged, 1 and 0 sizes") {
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 16385, 70001}) {
    const Tensors in = {randn({n}, 4), randn({n}, 5)};
    check_twins(f, in, four_roundings(in));
  }
}

TEST_CASE("inner_product: what is left of products that cancel is within their roundings") {
  const Tensors in = {tensor<double>({1 + 0x1p-12, 1}, {2}),
                      tensor<double>({1 + 0x1p-12, -(1 + 0x1p-11)}, {2})};  // 2⁻²⁴ in all
  check_twins(f, in, four_roundings(in));
}

TEST_CASE("inner_product: only the gradient that is asked for is made") {
  for (const Device device : devices()) {
    const Tensor a = tensor<float>({1, 2}, {2}, device);
    const Tensor b = leaf(tensor<float>({3, 4}, {2}, device));
    inner_product(a, b).backward();
    CHECK(values(b.grad()) == std::vector<double>{1, 2});
    CHECK(!a.grad().defined());
  }
}

TEST_CASE("inner_product: with itself it is the square of the norm") {
  for (const Device device : devices()) {
    const Tensor x = randn({1234}, 6, Dtype::f64, device);
    const double norm = l2_norm(x).item();
    CHECK(std::abs(f({x, x}).item() / (norm * norm) - 1) <= 1e-14);
  }
}

TEST_CASE("inner_product: other ranks and lengths are refused") {
  check_error(Kind::shape, {"inner_product: b has the wrong shape; got [4]; expected [3]"}, [] {
    f({zeros({3}), zeros({4})});
  });
  check_error(Kind::shape, {"inner_product: a must be [n]; got [2,3]"}, [] {
    f({zeros({2, 3}), zeros({2, 3})});
  });
  check_error(Kind::dtype, {"inner_product: a and b differ in dtype"}, [] {
    f({zeros({3}), zeros({3}, {.dtype = Dtype::f64})});
  });
  check_error(Kind::dtype, {"inner_product: a must be floating; got i32"}, [] {
    f({zeros({3}, {.dtype = Dtype::i32}), zeros({3})});
  });
}
