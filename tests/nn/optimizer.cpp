#include "ebb/nn/optimizer.h"

#include "ebb/nn/adamw.h"
#include "ebb/nn/sgd.h"
#include "state.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// The update written as the papers have it, one number at a time in double.
struct SlowAdamW {
  nn::AdamWOptions o;
  double m = 0, v = 0;
  int t = 0;
  double step(double p, double g, double rate) {
    ++t;
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(o.beta1, t));
    const double v_hat = v / (1 - std::pow(o.beta2, t));
    return p - rate * o.weight_decay * p - rate * m_hat / (std::sqrt(v_hat) + o.eps);
  }
};

struct SlowSGD {
  nn::SGDOptions o;
  double m = 0;
  double step(double p, double g, double rate) {
    g += o.weight_decay * p;
    m = o.momentum * m + g;
    return p - rate * (o.nesterov ? g + o.momentum * m : m);
  }
};

// Runs an optimizer for a few steps with random gradients beside the slow one, on every device.
template <class Optimizer, class Options, class Slow>
void check_against(const Slow& slow, const Options& options, Dtype dtype, double tolerance) {
  for (const Device device : devices()) {
    const Tensor start_a = randn({5000}, 1);  // more than one chunk, and a ragged one
    const Tensor start_b = randn({3}, 2);
    Tensor a = leaf(start_a.to(dtype).clone().to(device));
    Tensor b = leaf(start_b.to(dtype).clone().to(device));
    Optimizer optimizer(Tensors{a, b}, options);
    std::vector<double> expected = values(a);
    for (const double p : values(b)) expected.push_back(p);
    std::vector<Slow> slows(expected.size(), slow);
    for (int t = 0; t < 5; ++t) {
      a.set_grad(randn({5000}, 10 + t).to(dtype).to(device));
      b.set_grad(randn({3}, 20 + t).to(dtype).to(device));
      std::vector<double> g = values(a.grad());
      for (const double v : values(b.grad())) g.push_back(v);
      for (size_t i = 0; i < g.size(); ++i) expected[i] = slows[i].step(expected[i], g[i], 0.01);
      optimizer.step(0.01);
    }
    std::vector<double> got = values(a);
    for (const double p : values(b)) got.push_back(p);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = worse(worst, std::abs(got[i] - expected[i]));
    CHECK(worst <= tolerance);
  }
}

}  // namespace

TEST_CASE("adamw: five steps agree with the update of the paper") {
  const nn::AdamWOptions options{.beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.1};
  check_against<nn::AdamW>(SlowAdamW{options}, options, Dtype::f64, 1e-14);
  check_against<nn::AdamW>(SlowAdamW{options}, options, Dtype::f32, 2e-6);
}

TEST_CASE("sgd: five steps agree with the update, with and without nesterov") {
  for (const bool nesterov : {false, true}) {
    const nn::SGDOptions options{.momentum = 0.7, .weight_decay = 0.05, .nesterov = nesterov};
    check_against<nn::SGD>(SlowSGD{options}, options, Dtype::f64, 1e-14);
    check_against<nn::SGD>(SlowSGD{options}, options, Dtype::f32, 2e-6);
  }
}

TEST_CASE("adamw: the first step has the size of the rate for any gradient") {
  for (const Device device : devices()) {
    Tensor p = leaf(tensor<float>({1, 1, 1, 1}, {4}, device));
    nn::AdamW optimizer({p}, {.weight_decay = 0});
    p.set_grad(tensor<float>({0, 1e-20f, 1, 1e20f}, {4}, device));
    optimizer.step(1e-3);
    const auto v = values(p);
    CHECK(v[0] == 1);
    CHECK(std::abs(v[1] - 1) <= 1e-7);
    CHECK(std::abs(v[2] - 0.999) <= 1e-6);
    CHECK(std::abs(v[3] - 0.999) <= 1e-6);
  }
}

TEST_CASE("sgd: by default each step follows its own gradient alone") {
  for (const Device device : devices()) {
    Tensor p = leaf(ones({3}, {.device = device}));
    nn::SGD optimizer({p});
    for (const double g : {1.0, 2.0, 0.0}) {
      p.set_grad(full({3}, g, {.device = device}));
      optimizer.step(0.125);
    }
    CHECK(values(p) == std::vector<double>(3, 0.625));
  }
}

TEST_CASE("optimizers: groups decay apart, and parameters without a gradient stay") {
  for (const Device device : devices()) {
    Tensor a = leaf(ones({2}, {.device = device}));
    Tensor b = leaf(ones({2}, {.device = device}));
    Tensor c = leaf(ones({2}, {.device = device}));
    nn::SGD optimizer({{{a}, 0.5}, {{b, c}, 0}}, {.momentum = 0});
    const auto before = c.version();
    a.set_grad(zeros_like(a));
    b.set_grad(zeros_like(b));
    optimizer.step(0.1);
    CHECK(std::abs(values(a)[0] - 0.95) <= 1e-7);
    CHECK(values(b)[0] == 1);
    CHECK(values(c)[0] == 1);
    CHECK(c.version() == before);
  }
}

TEST_CASE("optimizers: more tensors than one launch's table holds") {
  for (const Device device : devices()) {
    Tensors many;
    for (int i = 0; i < 130; ++i) {
      many.push_back(leaf(full({i % 7 + 1}, i, {.device = device})));
      many.back().set_grad(ones_like(many.back()));
    }
    nn::SGD optimizer(many);
    optimizer.step(1);
    for (int i = 0; i < 130; ++i)
      for (const double v : values(many[static_cast<size_t>(i)])) CHECK(v == i - 1);
  }
}

TEST_CASE("optimizers: state goes out and in, and continues to the same bits") {
  for (const Device device : devices()) {
    const auto run = [&](bool interrupted) {
      Tensor p = leaf(randn({100}, 5, Dtype::f32, device));
      auto optimizer = std::make_unique<nn::AdamW>(Tensors{p});
      for (int t = 0; t < 6; ++t) {
        if (interrupted && t == 3) {
          const nn::NamedTensors state = copies(optimizer->state());
          const auto steps = optimizer->steps();
          optimizer = std::make_unique<nn::AdamW>(Tensors{p});
          optimizer->load_state(state, steps);
        }
        p.set_grad(randn({100}, 30 + t, Dtype::f32, device));
        optimizer->step(0.01);
      }
      return p.to_vector<float>();
    };
    CHECK(run(true) == run(false));
  }
}

TEST_CASE("optimizers: bad options, rates and states are refused") {
  Tensor p = leaf(ones({2}));
  check_error(Kind::value, {"adamw: nothing to train"}, [] { nn::AdamW(Tensors{}); });
  check_error(Kind::value, {"adamw: bad beta1", "got 1"}, [&] { nn::AdamW({p}, {.beta1 = 1}); });
  check_error(Kind::value, {"adamw: bad beta2"}, [&] { nn::AdamW({p}, {.beta2 = -0.1}); });
  check_error(Kind::value, {"adamw: bad eps"}, [&] { nn::AdamW({p}, {.eps = 0}); });
  check_error(Kind::value, {"adamw: bad weight_decay"},
              [&] { nn::AdamW({p}, {.weight_decay = -1}); });
  check_error(Kind::value, {"sgd: bad momentum"}, [&] { nn::SGD({p}, {.momentum = 1}); });
  check_error(Kind::value, {"sgd: nesterov"}, [&] { nn::SGD({p}, {.nesterov = true}); });
  nn::AdamW optimizer({p});
  for (const double rate : {-1.0, std::nan(""), double(INFINITY)})
    check_error(Kind::value, {"adamw: bad learning rate"}, [&] { optimizer.step(rate); });
  check_error(Kind::format, {"adamw: the state is not this optimizer's"},
              [&] { optimizer.load_state({}, 0); });
  check_error(Kind::state, {"set_grad"}, [&] { p.set_grad(ones({3})); });
}

TEST_CASE("clip_grad_norm: scales to the norm, only when above it, and tells the norm before") {
  for (const Device device : devices()) {
    Tensor a = leaf(zeros({2}, {.device = device}));
    Tensor b = leaf(zeros({5000}, {.device = device}));
    a.set_grad(tensor<float>({3, 4}, {2}, device));
    b.set_grad(full({5000}, 12 / std::sqrt(5000.0), {.device = device}));
    CHECK(std::abs(nn::clip_grad_norm({a, b}, 6.5).item() - 13) <= 1e-5);
    CHECK(std::abs(values(a.grad())[1] - 2) <= 1e-6);
    CHECK(std::abs(nn::clip_grad_norm({a, b}, 6.6).item() - 6.5) <= 1e-5);
    CHECK(std::abs(values(a.grad())[1] - 2) <= 1e-6);
    a.set_grad(tensor<float>({NAN, 4}, {2}, device));
    CHECK(std::isnan(nn::clip_grad_norm({a, b}, 1).item()));
    CHECK(values(a.grad())[1] == 4);
  }
  check_error(Kind::value, {"clip_grad_norm: bad max_norm"}, [] { nn::clip_grad_norm({}, 0); });
}

TEST_CASE(
    "clip_grad_norm: names the gradient that is not finite, when asked to, and changes none") {
  for (const Device device : devices()) {
    Tensor a = leaf(zeros({2}, {.device = device}));
    Tensor frozen = zeros({7}, {.device = device});
    Tensor b = leaf(zeros({5000}, {.device = device}));
    a.set_grad(tensor<float>({3, 4}, {2}, device));
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> g(5000, 1);
      g[17] = g[4999] = bad;
      b.set_grad(tensor(g, {5000}, device));
      check_error(Kind::state,
                  {"clip_grad_norm: a gradient is NaN or infinite",
                   "got 2 such elements for parameter 2, f32 [5000]"},
                  [&] {
                    nn::clip_grad_norm({a, frozen, b}, 1, {.error_if_nonfinite = true});
                  });
      CHECK(values(a.grad()) == std::vector<double>{3, 4});
      CHECK(values(b.grad())[0] == 1);
    }
    b.set_grad(full({5000}, 3e38, {.device = device}));
    check_error(Kind::state, {"got a norm that overflows"}, [&] {
      nn::clip_grad_norm({a, b}, 1, {.error_if_nonfinite = true});
    });
    b.set_grad({});
    CHECK(nn::clip_grad_norm({a, b}, 1, {.error_if_nonfinite = true}).item() == 5);
  }
}

TEST_CASE("optimizers: what backward would never reach, or one kernel not, is refused") {
  const Tensor w = leaf(ones({2}));
  for (const Tensor& result : {w.to(Dtype::f64), w.clone()})
    check_error(Kind::state, {"adamw: a parameter must be a leaf", "the result of `"}, [&] {
      nn::AdamW({w, result});
    });
  for (const Device device : devices()) {
    if (!device.is_cuda()) continue;
    Tensor there = leaf(ones({2}, {.device = device}));
    check_error(Kind::device, {"sgd: tensors on different devices", "got cuda:0; expected cpu"},
                [&] {
                  nn::SGD({w, there});
                });
    Tensor(w).set_grad(ones({2}));
    there.set_grad(ones({2}, {.device = device}));
    check_error(Kind::device, {"clip_grad_norm: tensors on different devices"}, [&] {
      nn::clip_grad_norm({w, there}, 1);
    });
  }
}
