#include "ebb/core/recompute.h"

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// A function that remembers much: w and x meet in a chain of four, with dropout in it; x counts
// several times.
Tensor chain(const Tensor& x, const Tensor& w) {
  Tensor h = x;
  for (int i = 0; i < 4; ++i) h = dropout(tanh(h * w), {.p = 0.25}) + x;
  return h;
}

struct Outcome {
  std::vector<double> y, dx, dw;
  std::uint64_t drawn;
  std::int64_t live;  // bytes kept between forward and backward
};

Outcome outcome(bool again, TensorOptions options, bool x_needs = true, bool w_needs = true) {
  const auto [dtype, device] = options;
  manual_seed(3);
  const Tensor input = randn({64, 33}, 1, dtype, device).set_requires_grad(x_needs);
  const Tensor x = input * 1;
  const Tensor w = randn({64, 33}, 2, dtype, device).set_requires_grad(w_needs);
  const std::int64_t before = memory_stats(device).live;
  const Tensor y =
      again ? recompute([w](const Tensor& in) { return chain(in, w); }, x) : chain(x, w);
  Outcome o{values(y), {}, {}, default_generator().drawn(), memory_stats(device).live - before};
  if (y.requires_grad()) (y + dropout(y)).backward(randn({64, 33}, 4, dtype, device));
  if (input.grad().defined()) o.dx = values(input.grad());
  if (w.grad().defined()) o.dw = values(w.grad());
  return o;
}

}  // namespace

TEST_CASE("recompute: same bytes as without, dropout too, whoever needs a gradient") {
  for (const Device device : devices())
    for (const int needs : {0, 1, 2, 3})
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const bool x_needs = needs & 1, w_needs = needs & 2;
        const Outcome plain = outcome(false, {dtype, device}, x_needs, w_needs);
        const Outcome again = outcome(true, {dtype, device}, x_needs, w_needs);
        CHECK(again.y == plain.y);
        CHECK(again.dx == plain.dx);
        CHECK(again.dw == plain.dw);
        CHECK(again.drawn == plain.drawn);
        CHECK(again.dx.empty() == !x_needs);
        CHECK(again.dw.empty() == !w_needs);
      }
}

TEST_CASE("recompute: keeps its result and nothing between") {
  for (const Device device : devices()) {
    const std::int64_t one = 64 * 33 * 4;
    CHECK(outcome(true, {Dtype::f32, device}).live < 2 * one);  // memory comes in classes of sizes
    CHECK(outcome(false, {Dtype::f32, device}).live >= 8 * one);
  }
}

TEST_CASE("recompute: the generator goes on from where it was before backward") {
  const Tensor x = leaf(ones({100}));
  const Tensor y = recompute([](const Tensor& in) { return dropout(in); }, x);
  default_generator().next();
  const std::uint64_t drawn = default_generator().drawn();
  y.backward(ones({100}));
  CHECK(default_generator().drawn() == drawn);
  CHECK(values(x.grad()) == values(y));
}

TEST_CASE("recompute: gradients agree with finite differences, one inside another too") {
  const auto inner = [](const Tensor& x) {
    return recompute([](const Tensor& u) { return tanh(u * u); }, x);
  };
  check_gradients(
      [&](const Tensors& in) {
        const Tensor w = in[1];
        return recompute([=](const Tensor& x) { return inner(x * w) + x; }, in[0]);
      },
      {randn({3, 4}, 1), randn({3, 4}, 2)});
}

TEST_CASE("recompute: nothing is recorded under NoGrad, and an input changed since is refused") {
  Tensor x = leaf(ones({3}));
  {
    const NoGrad guard;
    CHECK(!recompute([](const Tensor& in) { return tanh(in); }, x).requires_grad());
  }
  const Tensor y = recompute([](const Tensor& in) { return tanh(in); }, x);
  {
    const NoGrad guard;
    x.fill_(2);
  }
  check_error(Kind::state, {"recompute: a tensor saved for backward was changed in place"},
              [&] { y.backward(ones({3})); });
}
