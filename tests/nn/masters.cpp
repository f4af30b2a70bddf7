#include "ebb/nn/adamw.h"
#include "ebb/nn/layers.h"
#include "ebb/nn/sgd.h"
#include "state.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

// bf16 has 8 bits: beside 1, steps below 2⁻⁸ are lost.
constexpr double rounding = 1.0 / 512;

Tensor parameter(const Tensor& values, Device device) {
  return leaf(values.to(Dtype::bf16).clone().to(device));
}

std::vector<float> bits(const Tensor& x) { return x.to(Dtype::f32).to_vector<float>(); }

Tensor slot(const nn::Optimizer& optimizer, const std::string& name) {
  for (const auto& [own, t] : optimizer.state())
    if (own == name) return t;
  return {};
}

}  // namespace

TEST_CASE("masters: 1,000 steps that bf16 alone would lose arrive") {
  for (const Device device : devices()) {
    Tensor p = parameter(ones({5000}), device);
    nn::SGD optimizer({p});
    for (int t = 0; t < 1000; ++t) {
      p.set_grad(ones_like(p));
      optimizer.step(1e-4);  // of 1, less than half a step of bf16
    }
    for (const double v : values(p)) CHECK(std::abs(v - 0.9) <= rounding);
    for (const double v : values(slot(optimizer, "0.master"))) CHECK(std::abs(v - 0.9) <= 1e-4);
  }
}

// The same steps in f32, from the same bf16 weights by the same gradients: the masters are those
// weights to the bit, and the parameters are their roundings.
TEST_CASE("masters: are the weights that f32 training has, the parameters their roundings") {
  for (const Device device : devices()) {
    const Tensor start = randn({5001}, 1).to(Dtype::bf16);
    const auto check = [&](auto make) {
      Tensor p = parameter(start, device);
      Tensor fine = leaf(start.to(Dtype::f32).to(device));
      auto coarse_optimizer = make(p);
      auto fine_optimizer = make(fine);
      for (int t = 0; t < 5; ++t) {
        const Tensor g = randn({5001}, 2 + t).to(Dtype::bf16).to(device);
        p.set_grad(t % 2 ? g.to(Dtype::f32) : g);  // a sum of several is f32
        fine.set_grad(g.to(Dtype::f32));
        coarse_optimizer.step(1e-3);
        fine_optimizer.step(1e-3);
      }
      CHECK(bits(slot(coarse_optimizer, "0.master")) == bits(fine));
      CHECK(bits(p) == bits(fine.detach().to(Dtype::bf16)));
    };
    check([](const Tensor& p) { return nn::AdamW({p}, {.weight_decay = 0.1}); });
    check([](const Tensor& p) {
      return nn::SGD({p}, {.momentum = 0.9, .weight_decay = 0.1, .nesterov = true});
    });
  }
}

TEST_CASE("masters: parameters of several types step together, as each would alone") {
  for (const Device device : devices()) {
    const auto make = [&] {
      Tensors all;
      for (int i = 0; i < 100; ++i) {
        const Dtype dtype = i % 3 == 0 ? Dtype::bf16 : i % 3 == 1 ? Dtype::f32 : Dtype::f64;
        all.push_back(leaf(randn({i * 50 + 1}, i).to(dtype).clone().to(device)));
        all.back().set_grad(randn({i * 50 + 1}, 200 + i).to(dtype).to(device));
        if (i % 6 == 0) all.back().set_grad(all.back().grad().to(Dtype::f32));
      }
      return all;
    };
    const Tensors together = make(), alone = make();
    nn::AdamW(together).step(0.01);
    for (const Tensor& p : alone) nn::AdamW({p}).step(0.01);
    for (size_t i = 0; i < alone.size(); ++i) CHECK(values(together[i]) == values(alone[i]));
  }
}

TEST_CASE("masters: state goes out and in, before or after the weights, to the same bits") {
  for (const Device device : devices())
    for (const int order : {0, 1, 2}) {  // unbroken; optimizer, weights; weights, optimizer
      static std::vector<float> unbroken;
      Tensor p = parameter(randn({300}, 1), device);
      auto optimizer = std::make_unique<nn::AdamW>(Tensors{p});
      for (int t = 0; t < 6; ++t) {
        if (order && t == 3) {
          const nn::NamedTensors state = copies(optimizer->state());
          CHECK(state.size() == 3);
          const Tensor weights = p.clone();
          const std::int64_t steps = optimizer->steps();
          p = parameter(randn({300}, 99), device);
          optimizer = std::make_unique<nn::AdamW>(Tensors{p});
          const auto load = [&] {
            const NoGrad guard;
            p.copy_(weights);
          };
          if (order == 2) load();
          optimizer->load_state(state, steps);
          if (order == 1) load();
        }
        p.set_grad(randn({300}, 30 + t).to(Dtype::bf16).to(device));
        optimizer->step(1e-3);
      }
      if (order == 0) unbroken = bits(slot(*optimizer, "0.master"));
      CHECK(bits(slot(*optimizer, "0.master")) == unbroken);
    }
}

TEST_CASE("masters: a parameter that was changed since counts, not its master") {
  for (const Device device : devices()) {
    Tensor p = parameter(ones({3}), device);
    nn::SGD optimizer({p});
    {
      const NoGrad guard;
      p.fill_(2);
    }
    p.set_grad(zeros_like(p));
    optimizer.step(0.1);
    CHECK(values(p) == std::vector<double>{2, 2, 2});
    CHECK(values(slot(optimizer, "0.master")) == std::vector<double>{2, 2, 2});
  }
}

TEST_CASE("masters: a model that is converted after its optimizer was made is refused") {
  nn::Linear linear(2, 2);
  nn::AdamW optimizer(linear.parameters());
  linear.to(Dtype::bf16);
  linear.weight.set_grad(ones_like(linear.weight));
  check_error(Kind::state, {"adamw: a parameter was converted", "got bf16"},
              [&] { optimizer.step(0.1); });
}

TEST_CASE("masters: gradients of several passes are added up in f32") {
  for (const Device device : devices()) {
    Tensor p = parameter(ones({100}), device);
    (p * 1).backward(full({100}, 1, {Dtype::bf16, device}));
    CHECK(p.grad().dtype() == Dtype::bf16);
    for (int i = 0; i < 100; ++i) (p * 1).backward(full({100}, 1.0 / 1024, {Dtype::bf16, device}));
    CHECK(p.grad().dtype() == Dtype::f32);
    for (const double g : values(p.grad())) CHECK(std::abs(g - (1 + 100.0 / 1024)) <= 1e-6);
    check_error(Kind::state, {"set_grad"}, [&] { p.set_grad(ones({100}, {Dtype::f64, device})); });
  }
}

TEST_CASE("masters: clipping measures and scales gradients of every type") {
  for (const Device device : devices()) {
    Tensor a = parameter(zeros({5000}), device), b = parameter(zeros({2}), device);
    Tensor c = leaf(zeros({2}, {.device = device}));
    a.set_grad(full({5000}, 0.125, {Dtype::bf16, device}));
    b.set_grad(tensor<float>({3, 4}, {2}, device));
    c.set_grad(tensor<float>({6, 8}, {2}, device));
    const double norm = std::sqrt(5000 * 0.125 * 0.125 + 25 + 100);
    const Tensor found = nn::clip_grad_norm({a, b, c}, norm / 2);
    CHECK(found.dtype() == Dtype::f32);
    CHECK(std::abs(found.item() - norm) <= 1e-6 * norm);
    for (const double g : values(a.grad())) CHECK(g == 0.0625);
    CHECK(std::abs(values(b.grad())[1] - 2) <= 1e-6);
    CHECK(std::abs(values(c.grad())[1] - 4) <= 1e-6);
  }
}
