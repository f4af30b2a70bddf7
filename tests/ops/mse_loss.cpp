#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {
Function f(Reduction reduction) {
  return [=](const Tensors& in) { return mse_loss(in[0], in[1], {reduction}); };
}
constexpr Reduction reductions[] = {Reduction::mean, Reduction::sum, Reduction::none};
}  // namespace

TEST_CASE("mse_loss: mean, sum and each, up to infinity") {
  for (const Device device : devices()) {
    Tensor x = leaf(tensor<float>({1, 2, 4}, {3}, device));
    const Tensor t = tensor<float>({1, 0, 1}, {3}, device);
    CHECK(std::abs(f(Reduction::mean)({x, t}).item() - 13. / 3) <= 1e-6);
    CHECK(f(Reduction::sum)({x, t}).item() == 13);
    CHECK(values(f(Reduction::none)({x, t})) == std::vector<double>{0, 4, 9});
    Tensor big = leaf(full({1}, 1e20, {.device = device}));
    const Tensor y = mse_loss(big, zeros({1}, {.device = device}));
    CHECK(std::isinf(y.item()));
    y.backward();
    CHECK(std::abs(big.grad().item() / 2e20 - 1) <= 1e-6);
    CHECK(std::isnan(
        mse_loss(zeros({0}, {.device = device}), zeros({0}, {.device = device})).item()));
  }
}

TEST_CASE("mse_loss: both gradients agree with finite differences") {
  for (const Reduction r : reductions) check_gradients(f(r), {randn({3, 5}, 1), randn({3, 5}, 2)});
}

TEST_CASE("mse_loss: twins agree at ragged, 1 and 0 sizes") {
  for (const std::int64_t n : {1, 7, 4097})
    for (const Reduction r : reductions)
      check_twins(f(r), {randn({n}, 3), randn({n}, 4)}, {{1e-7, 2e-6}, {1e-7, 1e-6}});
  check_twins(f(Reduction::mean), {randn({140001}, 3), randn({140001}, 4)},
              {{1e-7, 2e-6}, {1e-7, 1e-6}});
  check_twins(f(Reduction::sum), {randn({0}, 3), randn({0}, 4)});
}

TEST_CASE("mse_loss: the target's gradient is minus the input's") {
  for (const Device device : devices()) {
    Tensor x = leaf(randn({99}, 5, Dtype::f32, device));
    Tensor t = leaf(randn({99}, 6, Dtype::f32, device));
    mse_loss(x, t).backward();
    const auto a = values(x.grad());
    const auto b = values(t.grad());
    for (size_t i = 0; i < a.size(); ++i) CHECK(a[i] == -b[i]);
  }
}

TEST_CASE("mse_loss: nothing is broadcast, and reductions are known by name") {
  check_error(Kind::shape, {"mse_loss: target has the wrong shape; got [3]; expected [2,3]"}, [] {
    mse_loss(zeros({2, 3}), zeros({3}));
  });
  check_error(Kind::value, {"mse_loss: unknown reduction; got abc"},
              [] { parse_reduction("mse_loss", "abc"); });
}
