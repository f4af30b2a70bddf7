#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

Function f(const ReduceOptions& options) {
  return [=](const Tensors& in) { return l2_norm(in[0], options); };
}

// The norm of a row, and its gradient for dy = 1.
void check_row(const std::vector<float>& x, double y, const std::vector<double>& dx) {
  for (const Device device : devices()) {
    const Shape shape{std::int64_t(x.size())};
    const Tensor in = leaf(tensor<float>(x, shape, device));
    const Tensor out = l2_norm(in);
    check_close(out, tensor<double>({y}, {}), {0, 2e-6}, "y");
    out.backward();
    check_close(in.grad(), tensor<double>(dx, shape), {0, 2e-6}, "dx");
  }
}

}  // namespace

TEST_CASE("l2_norm: known rows, also where squares leave f32") {
  const double half = std::sqrt(.5);
  check_row({3, 4}, 5, {.6, .8});
  check_row({0, 0}, 0, {0, 0});
  check_row({1e20f, 1e20f}, double(1e20f) * std::sqrt(2), {half, half});
  check_row({1e-30f, 1e-30f}, double(1e-30f) * std::sqrt(2), {half, half});
  check_row({INFINITY, 1}, INFINITY, {NAN, 0});
  check_row({NAN, 1}, NAN, {NAN, NAN});
}

TEST_CASE("l2_norm: squares leave f32 in bf16 too") {
  for (const Device device : devices())
    for (const float unit : {0x1p-100f, 1.f, 0x1p100f}) {
      const Tensor x = tensor<float>({3 * unit, 0, 4 * unit}, {3}, device).to(Dtype::bf16);
      CHECK(l2_norm(x).item() == 5 * double(unit));
    }
}

TEST_CASE("l2_norm: over all, one and several dimensions, kept or not") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({3, 0, 4, 12, 0, 5, 0, 0}, {2, 2, 2}, device);
    const auto of = [&](const ReduceOptions& options, const std::vector<double>& expected) {
      const Tensor y = l2_norm(x, options);
      check_close(y, tensor<double>(expected, y.shape()), {0, 2e-6}, "y");
    };
    of({}, {std::sqrt(194.0)});
    of({.dim = {1}}, {5, 12, 0, 5});
    of({.dim = {-1}, .keepdim = true}, {3, std::sqrt(160.0), 5, 0});
    of({.dim = {0, 2}}, {std::sqrt(34.0), std::sqrt(160.0)});
    CHECK(l2_norm(x, {.dim = {0, 2}, .keepdim = true}).shape() == Shape{1, 2, 1});
    CHECK(values(l2_norm(zeros({3, 0}, {.device = device}), {.dim = {1}})) ==
          std::vector<double>(3, 0));
  }
}

TEST_CASE("l2_norm: gradients agree with finite differences, and are 0 at 0") {
  check_gradients(f({}), {randn({3, 4}, 1)});
  check_gradients(f({.dim = {0}}), {randn({3, 5}, 2)});
  check_gradients(f({.dim = {1}}), {randn({3, 4, 2}, 3)});
  check_gradients(f({.dim = {0, 2}, .keepdim = true}), {randn({2, 3, 4, 2}, 4)});
  for (const Device device : devices())
    for (const std::int64_t dim : {0, 1}) {
      const Tensor x = leaf(zeros({3, 3}, {.device = device}));
      l2_norm(x, {.dim = {dim}}).backward(ones({3}, {.device = device}));
      CHECK(values(x.grad()) == std::vector<double>(9, 0));
    }
}

TEST_CASE("l2_norm: twins agree at ragged, 1 and 0 sizes") {
  const TwinTolerance tolerance{row, row_gradient};
  for (const std::int64_t n : {0, 1, 7, 255, 4097, 70001, 150001})
    check_twins(f({}), {randn({n}, 5)}, tolerance);
  for (const std::int64_t n : {1, 33, 1000})
    for (const std::int64_t m : {1, 5, 33}) {
      check_twins(f({.dim = {0}}), {randn({n, m}, 6)}, tolerance);
      check_twins(f({.dim = {1}}), {randn({m, n}, 7)}, tolerance);
    }
  check_twins(f({.dim = {1}}), {randn({3000, 3}, 8)}, tolerance);
  check_twins(f({.dim = {0, 2, 3}}), {randn({8, 5, 7, 9}, 9)}, tolerance);
}

TEST_CASE("l2_norm: a factor goes through, and the sign does not matter") {
  for (const Device device : devices()) {
    const Tensor x = randn({20, 50}, 10, Dtype::f64, device);
    const std::vector<double> one = values(l2_norm(x, {.dim = {1}}));
    const std::vector<double> two =
        values(l2_norm(mul(x, full({}, -8, x.options())), {.dim = {1}}));
    for (size_t i = 0; i < one.size(); ++i) CHECK(two[i] == 8 * one[i]);
  }
}

TEST_CASE("l2_norm: dimensions out of range or given twice are refused") {
  const Tensor x = zeros({2, 3});
  check_error(Kind::index, {"l2_norm: dimension out of range; got 2"},
              [&] { l2_norm(x, {.dim = {2}}); });
  check_error(Kind::value, {"l2_norm: dimension 1 is given twice"}, [&] {
    l2_norm(x, {.dim = {1, -1}});
  });
  check_error(Kind::dtype, {"l2_norm: x must be floating; got i32"},
              [] { l2_norm(zeros({2}, {.dtype = Dtype::i32})); });
}
