#include "twins.h"

using namespace ebb;
using namespace ebb::test;

TEST_CASE("mean: over all and over one dimension") {
  for (const Device device : devices()) {
    const Tensor x = tensor<float>({1, 2, 3, 4, 5, 9}, {2, 3}, device);
    CHECK(values(mean(x)) == std::vector<double>{4});
    CHECK(values(mean(x, {.dim = {1}})) == std::vector<double>{2, 6});
    CHECK(values(mean(x, {.dim = {0}, .keepdim = true})) == std::vector<double>{2.5, 3.5, 6});
  }
}

TEST_CASE("mean: of nothing it is NaN, of a sum that f32 cannot hold infinite") {
  for (const Device device : devices()) {
    CHECK(std::isnan(mean(zeros({0}, {.device = device})).item()));
    for (const double v : values(mean(zeros({3, 0}, {.device = device}), {.dim = {1}})))
      CHECK(std::isnan(v));
    Tensor x = leaf(full({4}, 3e38, {.device = device}));
    const Tensor y = mean(x);
    CHECK(std::isinf(y.item()));
    y.backward();
    CHECK(values(x.grad()) == std::vector<double>(4, .25));
  }
}

TEST_CASE("mean: gradients agree with finite differences") {
  const auto f = [](ReduceOptions options) {
    return [=](const Tensors& in) { return mean(in[0], options); };
  };
  check_gradients(f({}), {randn({3, 4}, 1)});
  check_gradients(f({.dim = {0, 2}}), {randn({2, 3, 4}, 2)});
}

TEST_CASE("mean: twins agree at ragged sizes") {
  const auto f = [](const Tensors& in) { return mean(in[0], {.dim = {0}}); };
  for (const Shape& shape : {Shape{1}, Shape{4097}, Shape{333, 17}, Shape{5, 1, 3}})
    check_twins(f, {randn(shape, 3)}, {{1e-6, 1e-7}, one_rounding});
}

TEST_CASE("mean: integers and dimensions out of range are refused") {
  check_error(Kind::dtype, {"mean: x must be floating; got i32"},
              [] { mean(zeros({2}, {.dtype = Dtype::i32})); });
  check_error(Kind::index, {"mean: dimension out of range; got -3"}, [] {
    mean(zeros({2, 2}), {.dim = {-3}});
  });
}
