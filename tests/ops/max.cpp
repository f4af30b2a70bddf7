#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using V = std::vector<double>;

Function f(const ReduceOptions& options) {
  return [=](const Tensors& in) { return max(in[0], options); };
}

// Distinct multiples of 1/16 in random order: no ties, no kink within a step of the check.
Tensor distinct(const Shape& shape, std::uint64_t seed) {
  Generator generator(seed);
  V v;
  for (const std::int32_t i : permutation(shape.numel(), generator).to_vector<std::int32_t>())
    v.push_back(i / 16.0);
  return tensor(v, shape);
}

// The gradient for a cotangent of ones.
V gradient(Tensor x, const ReduceOptions& options = {}) {
  x.set_requires_grad(true);
  const Tensor y = max(x, options);
  y.backward(ones_like(y));
  return values(x.grad());
}

}  // namespace

TEST_CASE("max: over all, one and several dimensions, kept or not") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 12, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2}, {2, 3, 2}, device);
    CHECK(values(max(x)) == V{12});
    CHECK(max(x).shape() == Shape{});
    CHECK(values(max(x, {.dim = {1}})) == V{5, 12, 11, 10});
    CHECK(values(max(x, {.dim = {-1, 0}})) == V{12, 10, 11});
    CHECK(max(x, {.dim = {-1, 0}, .keepdim = true}).shape() == Shape{1, 3, 1});
    CHECK(values(max(tensor<float>({5}, {}, device))) == V{5});
    CHECK(max(zeros({3, 0}, {.device = device}), {.dim = {0}}).shape() == Shape{0});
  }
}

TEST_CASE("max: of equals the first gets the gradient, over several dimensions too") {
  for (const Device device : devices()) {
    const auto on = [&](std::vector<float> v, const Shape& s) { return tensor(v, s, device); };
    CHECK(gradient(on({1, 3, 3}, {3})) == V{0, 1, 0});
    CHECK(gradient(on({-INFINITY, -INFINITY}, {2})) == V{1, 0});
    CHECK(gradient(on({1, 7, 7, 0, 7, 7, 1, 1}, {2, 2, 2}), {.dim = {0, 2}}) ==
          V{0, 1, 1, 0, 0, 0, 0, 0});
    CHECK(gradient(on({2, 2, 2, 2, 2, 2}, {3, 2}), {.dim = {0}}) == V{1, 1, 0, 0, 0, 0});
    std::vector<float> many(100'003, 1.f);
    many[70'001] = many[70'002] = many[100'000] = 2;
    const V dx = gradient(on(many, {100'003}));
    CHECK(dx[70'001] == 1);
    CHECK(dx[70'002] + dx[100'000] + dx[0] == 0);
  }
}

TEST_CASE("max: the first of equals is found wherever in its row it is, and the row in memory") {
  for (const Device device : devices())
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      for (const std::int64_t n : {5, 61, 257, 1031}) {
        Tensor x = zeros({n, n});  // row r is the largest from column r on
        for (std::int64_t r = 0; r < n; ++r)
          for (std::int64_t c = r; c < n; ++c) x.data<float>()[r * n + c] = 1;
        V identity(size_t(n * n));
        for (std::int64_t r = 0; r < n; ++r) identity[size_t(r * n + r)] = 1;
        CHECK(gradient(x.to(dtype).to(device), {.dim = {1}}) == identity);
      }
}

TEST_CASE("max: NaN wins and gets the gradient, in its own row only") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, NAN, 3, NAN, -1, INFINITY, 2, 0}, {2, 4}, device);
    check_close(max(x, {.dim = {1}}), tensor<double>({NAN, INFINITY}, {2}), exact, "max");
    CHECK(gradient(x.clone(), {.dim = {1}}) == V{0, 1, 0, 0, 0, 1, 0, 0});
    CHECK(std::isnan(max(x).item()));
  }
}

TEST_CASE("max: gradients agree with finite differences") {
  const GradcheckOptions tight{.atol = 1e-10, .rtol = 1e-10};
  check_gradients(f({}), {distinct({3, 4}, 1)}, tight);
  check_gradients(f({.dim = {0}}), {distinct({3, 5}, 2)}, tight);
  check_gradients(f({.dim = {1}}), {distinct({3, 4, 2}, 3)}, tight);
  check_gradients(f({.dim = {0, 2}, .keepdim = true}), {distinct({2, 3, 4, 2}, 4)}, tight);
}

TEST_CASE("max: twins agree bit for bit at ragged and 1 sizes") {
  const TwinTolerance same{exact, exact};
  for (const std::int64_t n : {1, 7, 255, 4097, 70001})
    check_twins(f({}), {distinct({n}, 5)}, same);
  for (const std::int64_t n : {1, 33, 1000})
    for (const std::int64_t m : {1, 5, 33}) {
      check_twins(f({.dim = {0}}), {randn({n, m}, 6)}, same);
      check_twins(f({.dim = {1}}), {randn({m, n}, 7)}, same);
    }
  check_twins(f({.dim = {0}}), {randn({3, 1025}, 8)}, same);
  check_twins(f({.dim = {1}}), {randn({0, 5}, 9)}, same);
  check_twins(f({.dim = {0, 2, 3}}), {distinct({8, 5, 7, 9}, 10)}, same);
}

TEST_CASE("max: an empty axis, unknown dimensions and integers are refused") {
  check_error(Kind::value, {"max: empty axis 1 has no largest element; got [3,0]"}, [] {
    max(zeros({3, 0}), {.dim = {1}});
  });
  check_error(Kind::value, {"max: empty axis 0"}, [] { max(zeros({0})); });
  check_error(Kind::index, {"max: dimension out of range"}, [] { max(zeros({2}), {.dim = {1}}); });
  check_error(Kind::value, {"max: dimension 0 is given twice"}, [] {
    max(zeros({2}), {.dim = {0, -1}});
  });
  check_error(Kind::dtype, {"max: x must be floating; got i32"},
              [] { max(zeros({2}, {.dtype = Dtype::i32})); });
}
