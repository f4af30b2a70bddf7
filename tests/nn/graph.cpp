#include "ebb/core/graph.h"

#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

struct Net : nn::Module {
  nn::Linear hidden{6, 32};
  nn::Dropout dropout{0.2};
  nn::Linear output{32, 5};
  Tensor forward(const Tensor& x) override { return output(dropout(gelu(hidden(x)))); }
  void parts(nn::Parts& p) override {
    p("hidden", hidden), p("dropout", dropout), p("output", output);
  }
};

constexpr std::int64_t total = 12;

// Bytes of everything that training changes, and the losses on the way. Ordinary steps get their
// rate from the host, captured ones from a table.
struct Trained {
  std::vector<std::vector<double>> state;
  std::vector<double> losses;
  std::uint64_t drawn;
  friend bool operator==(const Trained&, const Trained&) = default;
};

template <class Optimizer, class Options>
Trained trained(Device device, bool captured, Options options, Dtype dtype = Dtype::f32) {
  manual_seed(5);
  Net net;
  net.to(device);
  net.to(dtype);
  Optimizer optimizer(net.parameters(), options);
  const nn::Schedule rate =
      nn::warm_up(3, nn::cosine({.peak = 0.05, .steps = total - 3, .last = 0.001}));
  const Tensor rates = nn::tabulate(rate, total, device);
  const Tensor data = randn({20, 6}, 2, dtype, device);
  const Tensor labels = tensor<std::int32_t>(
      {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 1, 1, 1, 2, 2}, {20}, device);
  Tensor loss;
  std::int64_t step = 0;
  const auto train_step = [&] {
    loss = cross_entropy(net(data), labels, {.check_targets = false});
    loss.backward();
    nn::clip_grad_norm(net.parameters(), 0.5);
    if (captured)
      optimizer.step(rates);
    else
      optimizer.step(rate(step));
    optimizer.zero_grad();
    loss = loss.detach();
  };
  Graph graph(device, train_step);
  Trained result;
  for (; step < total; ++step) {
    if (captured)
      graph.run();
    else
      train_step();
    result.losses.push_back(loss.item());
  }
  for (const auto& [name, t] : net.state()) result.state.push_back(values(t));
  for (const auto& [name, t] : optimizer.state()) result.state.push_back(values(t));
  CHECK(optimizer.steps() == total);
  CHECK(graph.captured() == (captured && device.is_cuda()));
  result.drawn = default_generator().drawn();
  return result;
}

}  // namespace

TEST_CASE("graph: captured training gives the bytes of ordinary training, dropout and all") {
  for (const Device device : devices()) {
    const nn::AdamWOptions adam{.weight_decay = 0.1};
    const Trained ordinary = trained<nn::AdamW>(device, false, adam);
    CHECK(trained<nn::AdamW>(device, true, adam) == ordinary);
    CHECK(ordinary.losses.back() < ordinary.losses.front());
    const nn::SGDOptions sgd{.momentum = 0.9, .weight_decay = 0.01, .nesterov = true};
    CHECK(trained<nn::SGD>(device, true, sgd) == trained<nn::SGD>(device, false, sgd));
  }
}

TEST_CASE("graph: captured training of bf16 parameters gives the bytes of ordinary training") {
  for (const Device device : devices()) {
    const nn::AdamWOptions adam{.weight_decay = 0.1};
    CHECK(trained<nn::AdamW>(device, true, adam, Dtype::bf16) ==
          trained<nn::AdamW>(device, false, adam, Dtype::bf16));
  }
}

TEST_CASE("optimizer: a table gives each step its rate, and its last one after the end") {
  for (const Device device : devices()) {
    const Tensor rates = tensor<double>({0.5, 0.25}, {2}, device);
    Tensor p = leaf(zeros({1}, {Dtype::f64, device}));
    nn::SGD optimizer({p});
    std::vector<double> path;
    for (int i = 0; i < 4; ++i) {
      p.set_grad(ones({1}, p.options()));
      optimizer.step(rates);
      path.push_back(p.item());
    }
    CHECK(path == std::vector<double>{-0.5, -0.75, -1, -1.25});
    check_error(Kind::dtype, {"sgd: rates"}, [&] { optimizer.step(rates.to(Dtype::f32)); });
    check_error(Kind::shape, {"sgd: bad table of rates"}, [&] {
      optimizer.step(empty({0}, {Dtype::f64, device}));
    });
    CHECK(optimizer.steps() == 4);
  }
}
