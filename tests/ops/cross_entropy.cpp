#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

constexpr double inf = INFINITY;

Tensor labels(const std::vector<std::int32_t>& t, Device device = cpu_device) {
  return tensor<std::int32_t>(t, {std::int64_t(t.size())}, device);
}

// t[r] = 7 r + 3 mod classes, every fifth one ignored.
Tensor some_labels(std::int64_t n, std::int64_t classes) {
  std::vector<std::int32_t> t;
  for (std::int64_t r = 0; r < n; ++r)
    t.push_back(r % 5 == 4 ? -100 : std::int32_t((7 * r + 3) % classes));
  return labels(t);
}

Function f(CrossEntropyOptions options) {
  return [=](const Tensors& in) {
    return cross_entropy(in[0], in[1], in.size() > 2 ? in[2].detach() : Tensor(), options);
  };
}

void check_row(const std::vector<double>& x, std::int32_t t, double loss,
               const std::vector<double>& dx, double smoothing = 0) {
  const std::int64_t n = std::int64_t(x.size());
  for (const Device device : devices()) {
    Tensor in = leaf(tensor<double>(x, {1, n}).to(Dtype::f32).to(device));
    const Tensor y = cross_entropy(in, labels({t}, device), {.label_smoothing = smoothing});
    check_close(y, tensor<double>({loss}, {}), pointwise, "loss");
    y.backward();
    if (!dx.empty()) check_close(in.grad(), tensor<double>(dx, {1, n}), pointwise_gradient, "dx");
  }
}

}  // namespace

TEST_CASE(
    "cross_entropy: writes the gradient over logits that nobody else needs, to the same bits") {
  for (const Device device : devices())
    for (const int held : {0, 1, 2}) {  // by nobody, by the caller, by a graph that is kept
      static std::vector<double> expected;
      const Tensor x = leaf(randn({700, 65}, 1, Dtype::f32, device));
      const Tensor target = zeros({700}, {Dtype::i32, device});
      Tensor logits = x * 2;
      const std::vector<double> before = values(logits);
      const Tensor loss = cross_entropy(logits, target);
      if (held != 1) logits = {};
      reset_peak(device);
      const std::int64_t live = memory_stats(device).live;
      loss.backward({}, held == 2);
      const std::int64_t more = memory_stats(device).peak - live;
      if (held == 0) expected = values(x.grad());
      CHECK(values(x.grad()) == expected);
      if (held == 1) CHECK(values(logits) == before);
      CHECK((more < 1.5 * 700 * 65 * 4) == (held == 0));  // dx, and only if need be dlogits
      if (held != 2) continue;
      x.grad().fill_(0);
      loss.backward();
      CHECK(values(x.grad()) == expected);
    }
}

TEST_CASE("cross_entropy: large and infinite logits, and smoothing") {
  check_row({1e4, -1e4}, 1, 20000, {1, -1});
  check_row({1e4, -1e4}, 0, 0, {0, 0});
  check_row({-inf, 0}, 0, inf, {-1, 1});
  check_row({-inf, 0}, 1, 0, {0, 0});
  check_row({inf, 0}, 1, NAN, {NAN, NAN});
  check_row({1, 2, 3}, 0, 2.3076060, {-.84330267, .21139514, .63190746}, .1);
  check_row({1e4, 1e4, 1e4}, 2, 1.0986123, {1 / 3., 1 / 3., -2 / 3.});
}

TEST_CASE("cross_entropy: ignored rows count nowhere, and a mean over none is NaN") {
  for (const Device device : devices()) {
    Tensor x = leaf(tensor<float>({1, 2, NAN, NAN, 3, 1}, {3, 2}, device));
    const Tensor y = cross_entropy(x, labels({0, -100, 1}, device));
    check_close(y, tensor<double>({(1.3132617 + 2.1269280) / 2}, {}), pointwise, "mean of two");
    y.backward();
    CHECK(values(x.grad())[2] == 0);
    CHECK(values(x.grad())[3] == 0);
    x.zero_grad();
    const Tensor none = cross_entropy(x, labels({7, 7, 7}, device), {.ignore_index = 7});
    CHECK(std::isnan(none.item()));
    none.backward();
    CHECK(values(x.grad()) == std::vector<double>(6, 0));
    const Tensor no_rows = zeros({0, 3}, {.device = device});
    CHECK(std::isnan(cross_entropy(no_rows, labels({}, device)).item()));
    CHECK(cross_entropy(no_rows, labels({}, device), {.reduction = Reduction::sum}).item() == 0);
  }
}

TEST_CASE("cross_entropy: the mean divides by the weights of the targets") {
  for (const Device device : devices()) {
    const Tensor x = zeros({2, 2}, {Dtype::f64, device});
    const Tensor w = tensor<double>({1, 3}, {2}, device);
    const Tensor t = labels({0, 1}, device);
    CHECK(std::abs(cross_entropy(x, t, w).item() - std::log(2)) <= 1e-15);
    const Tensor each = cross_entropy(x, t, w, {.reduction = Reduction::none});
    check_close(each, tensor<double>({std::log(2), 3 * std::log(2)}, {2}), pointwise, "each");
  }
}

TEST_CASE("cross_entropy: gradients agree with finite differences") {
  const Tensor t = some_labels(6, 4);
  for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none})
    for (const double smoothing : {0.0, 0.2}) {
      const CrossEntropyOptions options{.reduction = reduction, .label_smoothing = smoothing};
      check_gradients(
          [&](const Tensors& in) {
            return f(options)({in[0], t.to(in[0].device())});
          },
          {randn({6, 4}, 1)});
      check_gradients(
          [&](const Tensors& in) {
            const Tensor w = tensor<double>({.5, 1, 2, 0}, {4}, in[0].device());
            return f(options)({in[0], t.to(in[0].device()), w});
          },
          {randn({6, 4}, 2)});
    }
}

TEST_CASE("cross_entropy: twins agree at ragged sizes, from registers and from memory") {
  const TwinTolerance tolerance{row, row_gradient};
  for (const std::int64_t classes : {1, 2, 10, 33, 1000, 50257})
    for (const double smoothing : {0.0, 0.1}) {
      check_twins(f({.label_smoothing = smoothing}),
                  {randn({7, classes}, 3), some_labels(7, classes)}, tolerance);
    }
  check_twins(f({.reduction = Reduction::none}), {randn({70001, 3}, 4), some_labels(70001, 3)},
              tolerance);
}

TEST_CASE("cross_entropy: of bf16 logits, the loss and its gradient are rounded once") {
  for (const std::int64_t classes : {3, 64, 1000, 50257, 50304})
    for (const double smoothing : {0.0, 0.1}) {
      const Tensor x = randn({6, classes}, 5, Dtype::bf16, cpu_device, 3);
      const Tensor t = some_labels(6, classes);
      const CrossEntropyOptions options{.label_smoothing = smoothing};
      const Tensor wide = leaf(x.to(Dtype::f64));
      const Tensor reference = cross_entropy(wide, t, {}, options);
      reference.backward();
      for (const Device device : devices()) {
        const Tensor in = leaf(x.to(device));
        const Tensor y = cross_entropy(in, t.to(device), {}, options);
        check_close(y, reference.detach(), {0, 0x1p-8}, "loss");
        y.backward();
        check_close(in.grad(), wide.grad(), {1e-6 / double(classes), 0x1p-8}, "dx");
      }
    }
}

TEST_CASE("cross_entropy: a target that is no class is named, and the next call works") {
  for (const Device device : devices()) {
    const Tensor x = zeros({3, 2}, {.device = device});
    check_error(Kind::index, {"cross_entropy: target 2 not in [0,2), row 0"}, [&] {
      cross_entropy(x, labels({2, 1, 0}, device));
    });
    check_error(Kind::index, {"cross_entropy: target -1 not in [0,2), row 1"}, [&] {
      cross_entropy(x, labels({1, -1, 5}, device));
    });
    CHECK(std::abs(cross_entropy(x, labels({1, 0, 0}, device)).item() - std::log(2)) <= 1e-7);
  }
}

// More rows than one block of a GPU looks at, or adds up.
TEST_CASE("cross_entropy: of many rows the first bad target is named, and the loss is their mean") {
  constexpr std::int64_t rows = 40'001;
  std::vector<std::int32_t> targets(rows, 1);
  for (const Device device : devices()) {
    const Tensor x = randn({rows, 3}, 21, Dtype::f32, device);
    const auto loss = [&](const Tensor& in) {
      return cross_entropy(in, tensor<std::int32_t>(targets, {rows}, device));
    };
    const Tensor in = leaf(x), wide = leaf(x.to(Dtype::f64));
    const Tensor y = loss(in), reference = loss(wide);
    y.backward();
    reference.backward();
    check_close(y, reference.to(cpu_device), {0, long_sum}, "loss");
    check_close(in.grad(), wide.grad().to(cpu_device), row_gradient, "dx");
    targets[33'333] = 3;
    targets[35'000] = -1;
    check_error(Kind::index, {"cross_entropy: target 3 not in [0,3), row 33333"}, [&] { loss(x); });
    targets[33'333] = targets[35'000] = 1;
  }
}

TEST_CASE("cross_entropy: unchecked, a target that is no class makes its own row NaN") {
  for (const Device device : devices()) {
    Tensor x = leaf(zeros({3, 2}, {.device = device}));
    const Tensor t = labels({0, 2147483647, 1}, device);
    const Tensor y = cross_entropy(x, t, {.reduction = Reduction::none, .check_targets = false});
    check_close(y, tensor<double>({std::log(2), NAN, std::log(2)}, {3}), pointwise, "loss");
    y.backward(ones({3}, {.device = device}));
    check_close(x.grad(), tensor<double>({-.5, .5, NAN, NAN, .5, -.5}, {3, 2}), pointwise, "dx");
  }
}

TEST_CASE("cross_entropy: arguments that do not fit are refused") {
  const Tensor x = zeros({3, 2});
  const Tensor t = labels({0, 1, 1});
  check_error(Kind::shape, {"cross_entropy: logits must be [N,C]", "got [3]"},
              [&] { cross_entropy(zeros({3}), t); });
  check_error(Kind::shape, {"cross_entropy: target has the wrong shape; got [2]; expected [3]"},
              [&] {
                cross_entropy(x, labels({0, 1}));
              });
  check_error(Kind::dtype, {"cross_entropy: target must hold class numbers; got f32"},
              [&] { cross_entropy(x, zeros({3})); });
  check_error(Kind::shape, {"cross_entropy: weight has the wrong shape; got [3]; expected [2]"},
              [&] { cross_entropy(x, t, zeros({3})); });
  for (const double smoothing : {-.1, 1.0, double(NAN)})
    check_error(Kind::value, {"cross_entropy: label_smoothing out of range"},
                [&] { cross_entropy(x, t, {.label_smoothing = smoothing}); });
}
