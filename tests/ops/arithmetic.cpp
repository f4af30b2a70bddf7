#include "pointwise.h"

using namespace ebb;
using namespace ebb::test;

namespace {

struct Named {
  const char* name;
  Function f;
};
const std::vector<Named> all = {
    {"add", [](const Tensors& in) { return in[0] + in[1]; }},
    {"sub", [](const Tensors& in) { return in[0] - in[1]; }},
    {"mul", [](const Tensors& in) { return in[0] * in[1]; }},
    {"div", [](const Tensors& in) { return in[0] / in[1]; }},
};

// Pairs of shapes, each a path of its own: equal, one number, suffix, prefix, middle, both ways.
const std::vector<std::pair<Shape, Shape>> shapes = {
    {{3, 4}, {3, 4}},
    {{3, 4}, {}},
    {{1}, {3, 4}},
    {{3, 4}, {4}},
    {{8}, {5, 8}},
    {{3, 4}, {3, 1}},
    {{2, 1}, {2, 8}},
    {{2, 3, 4}, {1, 3, 1}},
    {{2, 3, 2, 2}, {3, 1, 1}},
    {{3, 1}, {1, 4}},
    {{2, 1, 3}, {4, 1}},
    {{}, {}},
    {{1, 3}, {3}},
    {{2, 1, 3, 1}, {2, 2, 1, 2}},
};

// Numbers well away from 0, to divide by.
Tensor divisors(const Shape& shape, std::uint64_t seed) {
  Generator g(seed);
  return uniform(shape, 0.5, 2, g, {Dtype::f64});
}

}  // namespace

TEST_CASE("arithmetic: literal values, of both orders with a number too") {
  for (const Device device : devices()) {
    const Tensor a = tensor<float>({1, 2, 3, 4, 5, 6}, {2, 3}, device);
    const Tensor b = tensor<float>({10, 20, 40}, {3}, device);
    CHECK((a + b).to_vector<float>() == std::vector<float>{11, 22, 43, 14, 25, 46});
    CHECK((a - b).to_vector<float>() == std::vector<float>{-9, -18, -37, -6, -15, -34});
    CHECK((b - a).to_vector<float>() == std::vector<float>{9, 18, 37, 6, 15, 34});
    CHECK((b * a).to_vector<float>() == std::vector<float>{10, 40, 120, 40, 100, 240});
    CHECK((b / a).to_vector<float>()[4] == 4);
    CHECK((1 - b).to_vector<float>() == std::vector<float>{-9, -19, -39});
    CHECK((b - 1).to_vector<float>() == std::vector<float>{9, 19, 39});
    CHECK((40 / b).to_vector<float>() == std::vector<float>{4, 2, 1});
    CHECK((b / 10).to_vector<float>() == std::vector<float>{1, 2, 4});
    CHECK((2 * b + 1).to_vector<float>() == std::vector<float>{21, 41, 81});
    CHECK((-b).to_vector<float>() == std::vector<float>{-10, -20, -40});
  }
}

TEST_CASE("arithmetic: gradients agree with finite differences for every kind of broadcast") {
  for (const auto& [name, f] : all) {
    for (const auto& [a, b] : shapes) {
      INFO(name);
      check_gradients(f, {randn(a, 1), divisors(b, 2)});
    }
  }
  // Through one tensor, so that the leaf gets its gradient in one piece.
  for (const auto& named : all) {
    const Function twice = [&](const Tensors& in) {
      const Tensor x = in[0] * 1;
      return named.f({x, x});
    };
    check_gradients(twice, {divisors({5}, 3)});
  }
  const Function numbers = [](const Tensors& in) {
    const Tensor x = in[0] * 1;
    return (2 - x) * 3 + 1 / (x + 1) - x / 4;
  };
  check_gradients(numbers, {divisors({5}, 4)});
  check_gradients([](const Tensors& in) { return -in[0]; }, {randn({5}, 4)}, {.atol = 1e-10});
}

TEST_CASE("arithmetic: twins agree within one rounding, and sums of gradients as sums do") {
  for (const auto& [name, f] : all) {
    for (const std::int64_t n : {0, 1, 7, 255, 4097, 40001})
      check_twins(f, {randn({n}, 1), divisors({n}, 2)}, {one_rounding, {0, 2.4e-7}});
    for (const auto& [a, b] : shapes)
      check_twins(f, {randn(a, 1), divisors(b, 2)}, {one_rounding, row_gradient});
    const std::vector<std::pair<Shape, Shape>> large = {
        {{1100, 17}, {17}},  {{17}, {600, 17}},       {{700, 64}, {64}},     {{9011}, {}},
        {{3, 9011}, {3, 1}}, {{4, 33, 257}, {33, 1}}, {{100, 1}, {1, 1003}}, {{0, 3}, {3}},
        {{1, 3}, {0, 3}},    {{40, 2000}, {40, 1}},
    };
    for (const auto& [a, b] : large)
      check_twins(f, {randn(a, 1), divisors(b, 2)}, {one_rounding, row_gradient});
    check_bf16(f, {randn({33, 64}, 1), divisors({64}, 2)});
    check_bf16(f, {randn({33, 64}, 1), divisors({33, 1}, 2)});
    check_bf16(f, {randn({64}, 1), divisors({33, 64}, 2)});
  }
}

TEST_CASE("arithmetic: short and long rows meet the elements that the rule of broadcasting says") {
  const std::vector<std::pair<Shape, Shape>> short_and_long = {
      {{1001, 3}, {3}},          {{1001, 3}, {1001, 1}}, {{1001, 1}, {1, 13}},
      {{77, 2, 5}, {2, 1}},      {{5, 1, 19}, {7, 1}},   {{3, 7, 2, 33}, {7, 1, 33}},
      {{2, 40, 63}, {2, 1, 63}}, {{9, 64}, {9, 1}},      {{3, 4, 5, 70}, {3, 1, 5, 1}},
  };
  for (const auto& [of_a, of_b] : short_and_long) {
    const Tensor a = randn(of_a, 5), b = divisors(of_b, 6);
    const std::vector<double> in_a = values(a), in_b = values(b);
    const Shape shape = (a + b).shape();
    // Element i counts through the dimensions from the right; those of extent 1 stay at 0.
    const auto met = [&](const Shape& own, std::int64_t i) {
      std::int64_t at = 0, step = 1;
      for (int d = 1; d <= own.rank(); i /= shape[shape.rank() - d], step *= own[own.rank() - d++])
        if (own[own.rank() - d] > 1) at += i % shape[shape.rank() - d] * step;
      return static_cast<size_t>(at);
    };
    std::vector<double> sum, difference, product, quotient;
    for (std::int64_t i = 0; i < shape.numel(); ++i) {
      const double p = in_a[met(of_a, i)], q = in_b[met(of_b, i)];
      sum.push_back(p + q);
      difference.push_back(p - q);
      product.push_back(p * q);
      quotient.push_back(p / q);
    }
    for (const Device device : devices()) {
      const Tensor x = a.to(device), y = b.to(device);
      check_close(x + y, tensor(sum, shape), exact, "sum");
      check_close(x - y, tensor(difference, shape), exact, "difference");
      check_close(x * y, tensor(product, shape), exact, "product");
      check_close(x / y, tensor(quotient, shape), exact, "quotient");
    }
  }
}

TEST_CASE("arithmetic: a row beside a large matrix, on either side") {
  if (gpu_missing()) return;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const std::int64_t rows : {2050, 2051}) {
      const Tensor x = randn({rows, 8200}, 1, dtype), row = randn({8200}, 2, dtype);
      const Tensor there = x.to(cuda_device), row_there = row.to(cuda_device);
      CHECK(same_bytes(there - row_there, x - row));
      CHECK(same_bytes(row_there - there, row - x));
    }
}

TEST_CASE("div: zeros, infinities and denormals divide as IEEE 754 says") {
  for (const Device device : devices()) {
    const Tensor a = leaf(tensor<float>({0, 1, 1, inff, 1, 1e-40f}, {6}, device));
    const Tensor b = leaf(tensor<float>({0, 0, -0.0f, inff, 1e-40f, 2}, {6}, device));
    const Tensor y = a / b;
    check_close(y, tensor<double>({qnan, inf, -inf, qnan, inf, 5e-41}, {6}), {2e-45, 0}, "y");
    y.backward(ones_like(y));
    check_close(a.grad(), tensor<double>({inf, inf, -inf, 0, inf, 0.5}, {6}), one_rounding, "da");
    check_close(b.grad(), tensor<double>({qnan, -inf, -inf, qnan, -inf, -2.5e-41}, {6}), {2e-45, 0},
                "db");
  }
}

TEST_CASE("neg: changes the sign of zero") {
  for (const Device device : devices())
    CHECK(std::signbit(neg(zeros({1}, {.device = device})).to_vector<float>()[0]));
}

TEST_CASE("add: its backward moves no bytes where nothing is to be summed") {
  for (const Device device : devices()) {
    const Tensor a = leaf(randn({1000}, 1, Dtype::f32, device));
    const Tensor b = randn({1000}, 2, Dtype::f32, device);
    const Tensor y = a + b;
    const Tensor dy = ones_like(y);
    reset_peak(device);
    const auto before = memory_stats(device).live;
    const Gradients g = y.node()->backward(dy);
    CHECK(g[0].raw() == dy.raw());
    CHECK(!g[1].defined());
    CHECK(memory_stats(device).peak == before);
  }
}

TEST_CASE("arithmetic: a bias gradient of many rows keeps f32 accuracy") {
  for (const Device device : devices()) {
    const Tensor bias = leaf(zeros({3}, {.device = device}));
    const Tensor y = zeros({300000, 3}, {.device = device}) + bias;
    y.backward(full(y.shape(), 0.1, {.device = device}));
    check_close(bias.grad(), full({3}, 300000 * double(0.1f), {Dtype::f64}), {0, 1e-6}, "sum");
    const Tensor s = leaf(zeros({}, {.device = device}));
    const Tensor z = zeros({1000003}, {.device = device}) + s;
    z.backward(full(z.shape(), 0.1, {.device = device}));
    check_close(s.grad(), full({}, 1000003 * double(0.1f), {Dtype::f64}), {0, 1e-6}, "sum");
  }
}

TEST_CASE("arithmetic: bf16 gradients are summed in f32") {
  for (const Device device : devices()) {
    const TensorOptions options{Dtype::bf16, device};
    const Tensor bias = leaf(zeros({1, 16, 1}, options));
    const Tensor y = zeros({300, 16, 5}, options) + bias;
    y.backward(full(y.shape(), 1, options));
    check_close(bias.grad(), full({1, 16, 1}, 1500, {Dtype::f64}), bf16_rounding, "sum");
  }
}

TEST_CASE("arithmetic: mismatched shapes, dtypes and integers are refused") {
  check_error(Kind::shape, {"add: shapes differ at axis -1", "[2,3] and [4]"}, [] {
    add(zeros({2, 3}), zeros({4}));
  });
  check_error(Kind::dtype, {"mul: a and b differ in dtype", "f32 and f64"},
              [] { mul(zeros({2}), zeros({2}, {Dtype::f64})); });
  check_error(Kind::dtype, {"sub: a must be floating", "got i32"},
              [] { sub(zeros({2}, {Dtype::i32}), zeros({2}, {Dtype::i32})); });
  check_error(Kind::dtype, {"neg: x must be floating", "got u8"},
              [] { neg(zeros({2}, {Dtype::u8})); });
  if (cuda_device_count() > 0)
    check_error(Kind::device, {"div: a and b are on different devices", "cpu and cuda:0"},
                [] { div(zeros({2}), zeros({2}, {.device = cuda_device})); });
}

TEST_CASE("bf16: every number is widened, and its product rounded, as by conversion") {
  std::vector<bf16> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<std::uint16_t>(i);
  for (const Device device : devices()) {
    const Tensor x = tensor<bf16>(all, {1 << 16}, device), wide = x.to(Dtype::f32);
    for (const double s : {1.0, -1.0, 1.0 / 3, 1e-3, 1e3})
      check_close(x * s, (wide * s).to(Dtype::bf16), exact, "product");
  }
}
