#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Function f(const ReduceOptions& options) {
  return [=](const Tensors& in) { return sum(in[0], options); };
}
// 16 · 2⁻²⁴ · Σ|x|, where Σ|x| of n normal numbers is about n: RELIABILITY class E.
TwinTolerance sums(double n) { return {{1e-7 + 1e-6 * n, 1e-7}, exact}; }
}  // namespace

TEST_CASE("sum: over all, one and several dimensions, kept or not") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {2, 3, 2}, device);
    CHECK(values(sum(x)) == std::vector<double>{78});
    CHECK(sum(x).shape() == Shape{});
    CHECK(values(sum(x, {.dim = {1}})) == std::vector<double>{9, 12, 27, 30});
    CHECK(values(sum(x, {.dim = {-1, 0}})) == std::vector<double>{18, 26, 34});
    CHECK(sum(x, {.dim = {-1, 0}, .keepdim = true}).shape() == Shape{1, 3, 1});
    CHECK(values(sum(x, {.dim = {0, 1}})) == std::vector<double>{36, 42});
    CHECK(values(sum(tensor<float>({5}, {}, device))) == std::vector<double>{5});
  }
}

TEST_CASE("sum: the sum of nothing is 0") {
  for (const Device device : devices()) {
    const Tensor x = zeros({3, 0, 2}, {.device = device});
    CHECK(values(sum(x)) == std::vector<double>{0});
    CHECK(values(sum(x, {.dim = {1}})) == std::vector<double>(6, 0));
    CHECK(sum(x, {.dim = {0}}).shape() == Shape{0, 2});
  }
}

TEST_CASE("sum: 100,000,000 times 0.1 is right to a millionth") {
  for (const Device device : devices()) {
    const Tensor x = full({100'000'000}, 0.1f, {.device = device});
    CHECK(std::abs(sum(x).item() / 1e7 - 1) <= 1e-6);
  }
}

TEST_CASE("sum: gradients agree with finite differences") {
  check_gradients(f({}), {randn({3, 4}, 1)});
  check_gradients(f({.dim = {0}}), {randn({3, 5}, 2)});
  check_gradients(f({.dim = {1}}), {randn({3, 4, 2}, 3)});
  check_gradients(f({.dim = {0, 2}, .keepdim = true}), {randn({2, 3, 4, 2}, 4)});
}

TEST_CASE("sum: twins agree at ragged, 1 and 0 sizes") {
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 70001})
    check_twins(f({}), {randn({n}, 5)}, sums(double(n)));
  for (const std::int64_t n : {1, 33, 1000})
    for (const std::int64_t m : {1, 5, 33, 64}) {
      check_twins(f({.dim = {0}}), {randn({n, m}, 6)}, sums(double(n)));
      check_twins(f({.dim = {1}}), {randn({m, n}, 7)}, sums(double(n)));
    }
  check_twins(f({.dim = {1}}), {randn({70000, 3}, 8)}, sums(3));
  check_twins(f({.dim = {0, 2, 3}}), {randn({8, 5, 7, 9}, 9)}, sums(504));
}

TEST_CASE("sum: of more than caches keep, rows and columns lose nothing") {
  const std::pair<Dtype, Shape> cases[] = {
      {Dtype::f32, {9000, 1900}}, {Dtype::f32, {4100, 4104}},  {Dtype::f32, {4100, 4103}},
      {Dtype::f32, {3, 6000004}}, {Dtype::bf16, {8200, 4104}}, {Dtype::bf16, {2, 17000008}}};
  for (const auto& [dtype, shape] : cases) {
    const std::int64_t rows = shape[0], cols = shape[1];
    std::vector<float> x(static_cast<size_t>(rows * cols));  // small whole numbers: always exact
    std::vector<double> of_rows(static_cast<size_t>(rows)), of_columns(static_cast<size_t>(cols));
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        const auto value = static_cast<float>((r * 31 + c * 17) % 13 - 6);
        x[static_cast<size_t>(r * cols + c)] = value;
        of_rows[static_cast<size_t>(r)] += value;
        of_columns[static_cast<size_t>(c)] += value;
      }
    for (const Device device : devices()) {
      const Tensor in = tensor<float>(x, shape, device).to(dtype);
      CHECK(values(sum(in, {.dim = {1}})) == of_rows);
      CHECK(values(sum(in, {.dim = {0}})) == of_columns);
    }
  }
}

TEST_CASE("sum: replays of a step give the bytes of an ordinary one") {
  for (const Device device : devices()) {
    Tensor x = leaf(randn({3, 70000}, 9, Dtype::f32, device));
    Tensor y, z;
    Graph step(device, [&] {
      y = sum(x * x, {.dim = {1}});                   // slices, and their sums
      z = sum(reshape(x, {70000, 3}), {.dim = {0}});  // of columns
    });
    const auto run = [&] {
      step.run();
      return std::pair(values(y), values(z));
    };
    const auto ordinary = run();
    for (int i = 0; i < 4; ++i) CHECK(run() == ordinary);
    CHECK(step.captured() == device.is_cuda());
  }
}

TEST_CASE("sum: in bf16 only the result is rounded") {
  for (const Device device : devices()) {
    const Tensor x = full({4, 3, 1000}, 1.0078125, {Dtype::bf16, device});   // 1 + 2⁻⁷
    CHECK(values(sum(x, {.dim = {0, 2}})) == std::vector<double>(3, 4032));  // of 4031.25
  }
}

TEST_CASE("sum: infinities meet as IEEE says and NaN stays in its row") {
  const float inf = INFINITY;
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({inf, 1, inf, -inf, NAN, 1, 2, 3}, {4, 2}, device);
    check_close(sum(x, {.dim = {1}}), tensor<double>({INFINITY, NAN, NAN, 5}, {4}), exact, "sum");
  }
}

TEST_CASE("sum: a row of NaN leaves the rows beside it alone, however short they are") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16})
      for (const std::int64_t n : {9, 15, 17, 33, 63, 64}) {
        std::vector<double> numbers(size_t(21 * n)), sums(21);
        for (std::int64_t i = 0; i < 21 * n; ++i) {
          numbers[size_t(i)] = i / n == 1 ? NAN : double(i % 3);
          sums[size_t(i / n)] += numbers[size_t(i)];
        }
        const Tensor x = tensor<double>(numbers, {21, n}).to(dtype).to(device);
        check_close(sum(x, {.dim = {1}}), tensor<double>(sums, {21}), exact, "sum");
      }
}

TEST_CASE("sum: dimensions out of range or given twice are refused") {
  const Tensor x = zeros({2, 3});
  check_error(Kind::index, {"sum: dimension out of range; got 2"}, [&] { sum(x, {.dim = {2}}); });
  check_error(Kind::value, {"sum: dimension 1 is given twice"}, [&] { sum(x, {.dim = {1, -1}}); });
  check_error(Kind::dtype, {"sum: x must be floating; got i32"},
              [] { sum(zeros({2}, {.dtype = Dtype::i32})); });
}
