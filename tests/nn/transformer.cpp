#include "ebb/nn/transformer.h"

#include "ebb/nn/adamw.h"
#include "slow_transformer.h"
#include "state.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

using nn::FeedForwardKind;
using nn::Positions;
using nn::Transformer;
using nn::TransformerOptions;

constexpr TransformerOptions tiny{
    .vocabulary = 5, .context = 6, .layers = 2, .heads = 2, .width = 8};

TransformerOptions llama() {
  TransformerOptions o = tiny;
  o.positions = Positions::rotary;
  o.feed_forward = FeedForwardKind::swiglu;
  o.norm = nn::Norm::rms;
  o.tied_head = false;
  return o;
}

TransformerOptions with_bias() {
  TransformerOptions o = tiny;
  o.bias = true;
  return o;
}

Tensor tokens(const Shape& shape, std::int64_t vocabulary, std::uint64_t seed,
              Device device = cpu_device) {
  Generator generator(seed);
  return uniform(shape, 0, static_cast<double>(vocabulary), generator).to(Dtype::i32).to(device);
}

// GPT-2's initial values leave attention nearly flat: larger ones, so that every part matters.
Transformer lively(const TransformerOptions& options, Dtype dtype, Device device,
                   std::uint64_t seed = 1) {
  Transformer model(options);
  model.to(dtype);
  const NoGrad guard;
  for (Tensor& p : model.parameters()) p.copy_(randn(p.shape(), seed++, dtype) * 0.4);
  model.to(device);
  return model;
}

// Every combination of what changes the arithmetic.
std::vector<TransformerOptions> variants() {
  std::vector<TransformerOptions> all = {tiny, llama(), with_bias()};
  all.push_back(tiny);
  all.back().positions = Positions::rotary;
  all.push_back(llama());
  all.back().tied_head = true;
  all.back().bias = true;
  return all;
}

// Puts tensors in the places of a model's parameters, in their order.
class Assign : public nn::Parts {
 public:
  explicit Assign(const Tensors& values) : next_(values.begin()) {}
  void operator()(const std::string&, Tensor& parameter) override {
    if (parameter.defined()) parameter = *next_++;
  }
  void operator()(const std::string&, nn::Module& child) override { child.parts(*this); }
  void buffer(const std::string&, Tensor&) override {}

 private:
  Tensors::const_iterator next_;
};

std::vector<double> gradients(nn::Module& module) {
  std::vector<double> all;
  for (const Tensor& p : module.parameters())
    for (const double g : values(p.grad())) all.push_back(g);
  return all;
}

}  // namespace

TEST_CASE("transformer: logits agree with plain loops in f64") {
  for (const Device device : devices())
    for (const TransformerOptions& o : variants()) {
      Transformer model = lively(o, Dtype::f64, device);
      const Tensor input = tokens({2, 6}, 5, 1, device);
      const std::vector<double> y = values(model(input));
      const auto all = input.to_vector<std::int32_t>();
      const SlowTransformer slow(o, model);
      double worst = 0;
      size_t i = 0;
      for (auto row = all.begin(); row != all.end(); row += 6)
        for (const auto& logits : slow.logits({row, row + 6}))
          for (const double v : logits) worst = worse(worst, std::abs(y[i++] - v));
      CHECK(i == y.size());
      CHECK(worst <= 1e-12);
    }
}

TEST_CASE("transformer: gradients of every parameter agree with finite differences") {
  for (TransformerOptions o : variants())
    for (const bool recompute : {false, true}) {
      o.recompute = recompute;
      Transformer model = lively(o, Dtype::f64, cpu_device);
      const auto f = [&](const Tensors& in) {
        Assign assign(in);
        model.parts(assign);
        return model(tokens({2, 5}, 5, 2, in[0].device()));
      };
      check_gradients(f, model.parameters());
    }
}

TEST_CASE("transformer: its loss is that of its logits, and so are the gradients") {
  for (const Device device : devices())
    for (const TransformerOptions& o : variants()) {
      Transformer model = lively(o, Dtype::f64, device);
      const Tensor input = tokens({2, 6}, 5, 6, device), targets = tokens({2, 6}, 5, 7, device);
      const auto run = [&](const Tensor& loss) {
        loss.backward();
        std::vector<double> all = gradients(model);
        all.push_back(loss.item());
        for (Tensor& p : model.parameters()) p.zero_grad();
        return all;
      };
      const auto of_logits =
          run(cross_entropy(reshape(model(input), {-1, o.vocabulary}), flatten(targets)));
      for (const std::int64_t at_a_time : {1, 1000}) {
        const auto own = run(model.loss(input, targets, {.logits_at_a_time = at_a_time}));
        double worst = 0;
        for (size_t i = 0; i < own.size(); ++i)
          worst = worse(worst, std::abs(own[i] - of_logits[i]));
        CHECK(own.size() == of_logits.size());
        CHECK(worst <= 1e-12);
      }
    }
}

TEST_CASE("transformer: recomputed blocks give the same bytes, with dropout, in less memory") {
  for (const Device device : devices())
    for (const TransformerOptions& variant : {tiny, llama()}) {
      TransformerOptions o = variant;
      o.dropout = 0.2;
      o.layers = 6;
      const auto run = [&](bool recompute) {
        o.recompute = recompute;
        Transformer model = lively(o, Dtype::f32, device);
        manual_seed(4);
        reset_peak(device);
        const std::int64_t before = memory_stats(device).live;
        const Tensor y = model(tokens({16, 6}, 5, 3, device));
        y.backward(randn(y.shape(), 5, Dtype::f32, device));
        return std::tuple(values(y), gradients(model), memory_stats(device).peak - before);
      };
      const auto [y, dw, memory] = run(false);
      const auto [y2, dw2, less] = run(true);
      CHECK(y2 == y);
      CHECK(dw2 == dw);
      CHECK(less <= memory / 2);
    }
}

TEST_CASE("transformer: no logit depends on a later token") {
  for (const Device device : devices())
    for (const TransformerOptions& o : variants()) {
      Transformer model = lively(o, Dtype::f32, device);
      const NoGrad guard;
      std::vector<std::int32_t> text = {1, 2, 3, 4, 0, 1};
      const std::vector<double> before = values(model(tensor(text, {1, 6}, device)));
      text[4] = 3;
      const std::vector<double> after = values(model(tensor(text, {1, 6}, device)));
      CHECK(std::equal(before.begin(), before.begin() + 4 * 5, after.begin()));
      CHECK(!std::equal(before.begin() + 4 * 5, before.end(), after.begin() + 4 * 5));
    }
}

TEST_CASE("transformer: token by token, from a cache, gives the logits of the whole") {
  for (const Device device : devices())
    for (const TransformerOptions& o : variants()) {
      Transformer model = lively(o, Dtype::f64, device);
      model.eval();
      const Tensor all = tokens({2, 6}, 5, 6, device);
      Transformer::Cache cache;
      Transformer::Cache other(static_cast<size_t>(o.layers) + 1);
      check_error(Kind::value, {"Transformer: the cache of another model"},
                  [&] { model.next_logits(all, other); });
      for (const std::int64_t end : {3, 4, 5, 6}) {
        const std::int64_t begin = end == 3 ? 0 : end - 1;
        const Tensor y = model.next_logits(slice(all, 1, begin, end), cache);
        const Tensor whole = model(slice(all, 1, 0, end));
        check_close(y, reshape(slice(whole, 1, end - 1), {2, 5}), {1e-12, 1e-12}, "next logits");
        CHECK(!y.requires_grad());
      }
      check_error(Kind::index, {"Transformer: sequence longer than the context", "got 7", "6"},
                  [&] { model.next_logits(slice(all, 1, 0, 1), cache); });
    }
}

TEST_CASE("transformer: attention maps are rows of probabilities that see no future") {
  for (const Device device : devices()) {
    Transformer model = lively(llama(), Dtype::f64, device);
    const Tensor maps = model.attention_maps(tokens({2, 5}, 5, 7, device));
    CHECK(maps.shape() == Shape{2, 2, 5, 5});
    const std::vector<double> v = values(maps);
    for (size_t row = 0; row < 20; ++row) {
      double sum = 0;
      for (size_t k = 0; k < 5; ++k) {
        CHECK((v[row * 5 + k] > 0) == (k <= row % 5));
        sum += v[row * 5 + k];
      }
      CHECK(std::abs(sum - 1) <= 1e-14);
    }
  }
}

TEST_CASE("transformer: a tied head's gradient is the sum of both uses") {
  for (const Device device : devices()) {
    TransformerOptions o = tiny;
    Transformer tied = lively(o, Dtype::f64, device);
    o.tied_head = false;
    Transformer free = lively(o, Dtype::f64, device);
    nn::NamedTensors state = tied.state();
    state.emplace_back("head.weight", tied.tok.weight);
    free.load_state(state);
    const Tensor input = tokens({3, 6}, 5, 8, device);
    const Tensor dy = randn({3, 6, 5}, 9, Dtype::f64, device);
    tied(input).backward(dy);
    free(input).backward(dy);
    check_close(tied.tok.weight.grad(), free.tok.weight.grad() + free.head->weight.grad(),
                {1e-14, 1e-14}, "tok.weight");
    CHECK(names(tied.state()).size() + 1 == names(free.state()).size());
  }
}

TEST_CASE("transformer: names are those that a Python user expects") {
  Transformer model(tiny);
  const std::vector<std::string> found = names(model.state());
  CHECK(std::vector<std::string>(found.begin(), found.begin() + 8) ==
        std::vector<std::string>{"tok.weight", "pos.weight", "blocks.0.norm1.weight",
                                 "blocks.0.attention.qkv.weight", "blocks.0.attention.proj.weight",
                                 "blocks.0.norm2.weight", "blocks.0.feed_forward.up.weight",
                                 "blocks.0.feed_forward.down.weight"});
  CHECK(found.back() == "norm.weight");
  Transformer other(llama());
  const std::vector<std::string> llamas = names(other.state());
  CHECK(std::ranges::count(llamas, "pos.weight") == 0);
  CHECK(std::ranges::count(llamas, "blocks.1.feed_forward.gate.weight") == 1);
  CHECK(llamas.back() == "head.weight");
  CHECK(other.blocks[0].feed_forward.up.weight.shape() == Shape{24, 8});  // 8/3 · 8, up to 8s
}

TEST_CASE("transformer: starts from GPT-2's values") {
  manual_seed(1);
  TransformerOptions o = with_bias();
  o.width = 64, o.vocabulary = 100, o.context = 50;
  Transformer model(o);
  for (const auto& [name, w] : model.named_parameters()) {
    const std::vector<double> v = values(w);
    double square = 0;
    for (const double x : v) square += x * x / static_cast<double>(v.size());
    const bool last = name.ends_with("proj.weight") || name.ends_with("down.weight");
    const double expected = w.rank() == 2 ? (last ? 0.01 : 0.02) : name.ends_with("bias") ? 0 : 1;
    INFO(name);
    CHECK(std::abs(std::sqrt(square) - expected) <= 0.05 * expected);
  }
}

TEST_CASE("transformer: in bf16 it says what it says in f32, to bf16's precision") {
  for (const Device device : devices())
    for (const TransformerOptions& o : variants()) {
      Transformer model = lively(o, Dtype::bf16, device);
      const Tensor input = tokens({2, 6}, 5, 10, device);
      const Tensor rough = model(input);
      CHECK(rough.dtype() == Dtype::bf16);
      rough.backward(ones_like(rough));
      for (const Tensor& p : model.parameters()) CHECK(p.grad().defined());
      model.zero_grad();
      model.to(Dtype::f32);
      check_close(rough, model(input), {0, 0.05, true}, "logits");
    }
}

TEST_CASE("transformer: misuse has one line each, and the next call works") {
  const auto make = [](auto change) {
    return [=] {
      TransformerOptions o = tiny;
      change(o);
      const Transformer model(o);
    };
  };
  check_error(Kind::value, {"Transformer: heads must divide the width", "3 heads of 8"},
              make([](auto& o) { o.heads = 3; }));
  check_error(Kind::value, {"Transformer: bad vocabulary", "got 0"},
              make([](auto& o) { o.vocabulary = 0; }));
  check_error(Kind::value, {"Transformer: bad layers", "-1"}, make([](auto& o) { o.layers = -1; }));
  check_error(Kind::value, {"Transformer: bad heads"}, make([](auto& o) { o.heads = 0; }));
  for (const double p : {-0.1, 1.0, std::nan("")})
    check_error(Kind::value, {"Transformer: bad dropout"}, make([=](auto& o) { o.dropout = p; }));
  check_error(Kind::value, {"rotary positions turn pairs", "got 1"}, make([](auto& o) {
                o.heads = 8;
                o.positions = Positions::rotary;
              }));
  for (const Device device : devices()) {
    Transformer model(tiny);
    model.to(device);
    check_error(Kind::index, {"Transformer: sequence longer than the context; got 7", "6"}, [&] {
      model(tokens({1, 7}, 5, 1, device));
    });
    check_error(Kind::index, {"embedding: index 5 not in [0,5), position 1"}, [&] {
      model(tensor<std::int32_t>({0, 5}, {1, 2}, device));
    });
    check_error(Kind::dtype, {"embedding: indices must be whole numbers"}, [&] {
      model(zeros({1, 2}, {.device = device}));
    });
    check_error(Kind::shape, {"Transformer: tokens have the wrong rank", "[3]"},
                [&] { model(tokens({3}, 5, 1, device)); });
    CHECK(model(tokens({1, 6}, 5, 1, device)).shape() == Shape{1, 6, 5});
  }
}

TEST_CASE("transformer: matrices and tables decay, vectors do not") {
  Transformer model(with_bias());
  const std::vector<nn::Group> groups = nn::decay_groups(model, 0.1);
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].weight_decay == 0.1);
  CHECK(groups[1].weight_decay == 0);
  for (const Tensor& p : groups[0].parameters) CHECK(p.rank() == 2);
  for (const Tensor& p : groups[1].parameters) CHECK(p.rank() == 1);
  CHECK(groups[0].parameters.size() + groups[1].parameters.size() == model.parameters().size());
  CHECK(groups[0].parameters.front().same_as(model.tok.weight));
}

// bf16 parameters, masters, clipping, two micro-batches a step, recompute and dropout at once.
TEST_CASE("transformer: learns to repeat a sequence, whatever is switched on") {
  for (const Device device : devices())
    for (const bool everything : {false, true}) {
      manual_seed(6);
      TransformerOptions o = everything ? llama() : tiny;
      o.width = 32;
      o.recompute = everything;
      o.dropout = everything ? 0.05 : 0;
      Transformer model(o);
      if (everything) model.to(Dtype::bf16);
      model.to(device);
      nn::AdamW optimizer(nn::decay_groups(model, 0.01), {.beta2 = 0.95});
      const Tensor input = tokens({8, 6}, 5, 1, device);
      const Tensor target = tokens({8, 6}, 5, 1, device);  // each token itself
      double loss = 0;
      std::int64_t live = 0;  // bytes after a step: the same after each
      for (int step = 0; step < 60; ++step) {
        for (const std::int64_t half : {0, 4}) {
          const Tensor y = model(slice(input, 0, half, half + 4));
          const Tensor t = reshape(slice(target, 0, half, half + 4), {-1});
          const Tensor part = cross_entropy(reshape(y, {-1, 5}), t) / 2;
          part.backward();
          loss = 2 * part.item();
        }
        nn::clip_grad_norm(model.parameters(), 1);
        optimizer.step(1e-2);
        optimizer.zero_grad();
        if (step == 1) live = memory_stats(device).live;
      }
      CHECK(loss <= 0.1);
      CHECK(memory_stats(device).live == live);
    }
}
