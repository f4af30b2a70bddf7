#include "ebb/nn/module.h"

#include "ebb/nn/layers.h"
#include "state.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

struct Block : nn::Module {
  nn::Linear a{3, 4};
  nn::Sequential rest{nn::ReLU(), nn::Linear(4, 2, false), nn::Dropout(0.5)};
  Tensor count = zeros({1});
  Tensor forward(const Tensor& x) override { return rest(a(x)); }
  void parts(nn::Parts& p) override {
    p("a", a), p("rest", rest);
    p.buffer("count", count);
  }
};

}  // namespace

TEST_CASE("module: names follow the tree, absent tensors have none") {
  Block block;
  CHECK(names(block.named_parameters()) ==
        std::vector<std::string>{"a.weight", "a.bias", "rest.1.weight"});
  CHECK(names(block.named_buffers()) == std::vector<std::string>{"count"});
  CHECK(names(block.state()) ==
        std::vector<std::string>{"a.weight", "a.bias", "rest.1.weight", "count"});
}

TEST_CASE("module: a tensor under two names is listed once") {
  struct Tied : nn::Module {
    nn::Linear in{3, 3}, out{3, 3, false};
    Tied() { out.weight = in.weight; }
    Tensor forward(const Tensor& x) override { return out(in(x)); }
    void parts(nn::Parts& p) override { p("in", in), p("out", out); }
  } tied;
  CHECK(names(tied.named_parameters()) == std::vector<std::string>{"in.weight", "in.bias"});
  tied(ones({1, 3})).backward(ones({1, 3}));
  CHECK(tied.in.weight.grad().defined());
}

TEST_CASE("module: state loads into another instance, and the two then agree") {
  for (const Device device : devices()) {
    manual_seed(1);
    Block one;
    manual_seed(2);
    Block two;
    one.to(device);
    two.to(device);
    one.eval();
    two.eval();
    const Tensor x = randn({5, 3}, 3, Dtype::f32, device);
    CHECK(values(one(x)) != values(two(x)));
    two.load_state(one.state());
    CHECK(values(one(x)) == values(two(x)));
  }
}

TEST_CASE("module: a state that differs is refused, every difference listed, nothing loaded") {
  Block block;
  const auto before = values(block.a.weight);
  nn::NamedTensors state = {{"a.weight", ones({4, 3})},
                            {"a.bias", ones({5})},
                            {"count", zeros({1}, {.dtype = Dtype::i32})},
                            {"extra", ones({1})},
                            {"a.weight", ones({9})}};
  check_error(Kind::format,
              {"load_state", "a.bias is f32 [5] instead of f32 [4]", "missing rest.1.weight",
               "count is i32", "unknown extra", "repeated a.weight"},
              [&] { block.load_state(state); });
  CHECK(values(block.a.weight) == before);
}

TEST_CASE("module: sequences nest, and a copy shares its tensors") {
  nn::Sequential inner(nn::Linear(3, 4), nn::ReLU());
  nn::Sequential net(inner, nn::Linear(4, 2));
  CHECK(names(net.named_parameters()) ==
        std::vector<std::string>{"0.0.weight", "0.0.bias", "1.weight", "1.bias"});
  nn::Sequential copy(net);
  CHECK(copy.parameters().front().same_as(inner.parameters().front()));
  const Tensor x = randn({5, 3}, 9, Dtype::f32);
  CHECK(values(copy(x)) == values(net(x)));
}

TEST_CASE("module: train and eval reach every child") {
  Block block;
  const Tensor x = randn({64, 3}, 4, Dtype::f32);
  block.eval();
  CHECK(values(block(x)) == values(block(x)));
  block.train();
  CHECK(values(block(x)) != values(block(x)));
}

TEST_CASE("module: moving keeps the identity of parameters") {
  for (const Device device : devices()) {
    Block block;
    const Tensors before = block.parameters();
    block.to(device);
    const Tensors after = block.parameters();
    for (size_t i = 0; i < before.size(); ++i) {
      CHECK(after[i].same_as(before[i]));
      CHECK(after[i].device() == device);
      CHECK(after[i].requires_grad());
    }
  }
}

TEST_CASE("module: converting keeps identities, values and gradients; integers stay") {
  for (const Device device : devices()) {
    struct Counted : nn::Module {
      nn::Linear linear{3, 2};
      Tensor count = zeros({1}, {.dtype = Dtype::i32});
      Tensor mean = ones({2});
      Tensor forward(const Tensor& x) override { return linear(x); }
      void parts(nn::Parts& p) override {
        p("linear", linear);
        p.buffer("count", count);
        p.buffer("mean", mean);
      }
    } module;
    module.to(device);
    const Tensor weight = module.linear.weight;
    const std::vector<double> before = values(weight);
    module(ones({1, 3}, {.device = device})).backward(ones({1, 2}, {.device = device}));
    module.to(Dtype::f64);
    CHECK(weight.same_as(module.linear.weight));
    CHECK(weight.dtype() == Dtype::f64);
    CHECK(weight.requires_grad());
    CHECK(weight.grad().dtype() == Dtype::f64);
    CHECK(values(weight) == before);
    CHECK(module.count.dtype() == Dtype::i32);
    CHECK(module.mean.dtype() == Dtype::f64);
    module(ones({1, 3}, {Dtype::f64, device})).backward(ones({1, 2}, {Dtype::f64, device}));
    CHECK(values(weight.grad())[0] == 2);
    check_error(Kind::dtype, {"Module::to"}, [&] { module.to(Dtype::u8); });
  }
}

TEST_CASE("layers: initial weights fill the range that fan-in allows") {
  manual_seed(7);
  nn::Linear linear(100, 50);
  nn::Conv2d conv(8, 16, 5, {.groups = 2});
  const auto extremes = [](const Tensor& t) {
    const auto v = values(t);
    return std::pair(*std::min_element(v.begin(), v.end()), *std::max_element(v.begin(), v.end()));
  };
  const auto [low, high] = extremes(linear.weight);
  CHECK(-0.1 <= low);
  CHECK(low <= -0.099);
  CHECK(high <= 0.1);
  CHECK(high >= 0.099);
  const auto [conv_low, conv_high] = extremes(conv.weight);
  CHECK(conv.weight.shape() == Shape{16, 4, 5, 5});
  CHECK(-0.1 <= conv_low);
  CHECK(conv_high <= 0.1);
  CHECK(conv_high >= 0.099);
}

TEST_CASE("layers: embedding, layer norm and rms norm have PyTorch's initial values") {
  manual_seed(2);
  nn::Embedding table(200, 50);
  double square = 0;
  for (const double v : values(table.weight)) square += v * v / 10000;
  CHECK(std::abs(square - 1) <= 0.06);  // 4 deviations of the mean of 10,000 squares
  CHECK(table(tensor<std::int32_t>({0, 199, 7, 7}, {2, 2})).shape() == Shape{2, 2, 50});
  nn::LayerNorm norm(6);
  nn::RMSNorm rms(6);
  const Tensor x = randn({4, 6}, 3, Dtype::f32);
  CHECK(values(norm(x)) == values(layer_norm(x, ones({6}), zeros({6}))));
  CHECK(values(rms(x)) == values(rms_norm(x, ones({6}))));
  CHECK(names(norm.state()) == std::vector<std::string>{"weight", "bias"});
  nn::LayerNorm bare(6, 1e-5, false);
  CHECK(names(bare.state()) == std::vector<std::string>{"weight"});
  check_error(Kind::value, {"Embedding: bad rows"}, [] { nn::Embedding(0, 3); });
  check_error(Kind::value, {"LayerNorm: bad width"}, [] { nn::LayerNorm(0); });
  check_error(Kind::value, {"RMSNorm: bad width"}, [] { nn::RMSNorm(-1); });
}

TEST_CASE("layers: bad sizes are refused by name") {
  check_error(Kind::value, {"Linear: bad in", "got 0"}, [] { nn::Linear(0, 3); });
  check_error(Kind::value, {"Conv2d: groups must divide"},
              [] { nn::Conv2d(3, 4, 3, {.groups = 2}); });
  check_error(Kind::value, {"Conv2d: bad groups"}, [] { nn::Conv2d(3, 4, 3, {.groups = 0}); });
  check_error(Kind::shape, {"BatchNorm2d", "[2,3]"}, [] { nn::BatchNorm2d(3)(ones({2, 3})); });
  for (const double p : {-0.1, 1.1, std::nan("")})
    check_error(Kind::value, {"Dropout: bad p"}, [&] { nn::Dropout drop(p); });
}

TEST_CASE("layers: batch norm's running statistics start as documented and move in training") {
  nn::BatchNorm2d norm(2);
  norm.eval();
  const Tensor x = randn({4, 2, 3, 3}, 8, Dtype::f32);
  check_close(norm(x), x, {1e-5, 1e-5}, "mean 0 and variance 1 change nothing");
  norm.train();
  norm(x);
  CHECK(values(norm.running_mean)[0] != 0);
}
