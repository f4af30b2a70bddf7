// Loads a transformer that Python wrote, and says what it computes, for check_python_weights.py:
//   transformer_probe CASE.safetensors RESULT.safetensors
// CASE: "model" in the metadata, as train_transformer writes it; the weights under "model.";
// "x" and "y", i32 [steps,batch,length], to train on. RESULT: "logits" of the first batch before
// training, the loss of each step, the trained weights, and their "trained_logits".
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>

#include "ebb/ebb.h"

namespace {

using namespace ebb;

nn::TransformerOptions options_of(const Checkpoint& input) {
  const auto json = nlohmann::json::parse(input.metadata.at("model"));
  nn::TransformerOptions o{.vocabulary = json.at("vocabulary"),
                           .context = json.at("context"),
                           .layers = json.at("layers"),
                           .heads = json.at("heads"),
                           .width = json.at("width")};
  if (json.at("positions") == "rotary") o.positions = nn::Positions::rotary;
  if (json.at("feed_forward") == "swiglu") o.feed_forward = nn::FeedForwardKind::swiglu;
  if (json.at("norm") == "rms") o.norm = nn::Norm::rms;
  return o;
}

nn::NamedTensors weights_of(const Checkpoint& input) {
  const std::string prefix = "model.";
  nn::NamedTensors weights;
  for (const auto& [name, t] : input.tensors)
    if (name.starts_with(prefix)) weights.emplace_back(name.substr(prefix.size()), t);
  return weights;
}

Tensor at(const Tensor& all, std::int64_t step) {
  return reshape(slice(all, 0, step, step + 1), {all.size(1), all.size(2)});
}

Tensor losses(nn::Transformer& model, const Tensor& x, const Tensor& y) {
  nn::AdamW optimizer(nn::decay_groups(model, 0.1), {.beta2 = 0.95});
  Tensors all;
  for (std::int64_t step = 0; step < x.size(0); ++step) {
    const Tensor logits = model(at(x, step));
    const Tensor loss = cross_entropy(reshape(logits, {-1, logits.size(2)}), flatten(at(y, step)));
    loss.backward();
    nn::clip_grad_norm(model.parameters(), 1);
    optimizer.step(1e-3);
    optimizer.zero_grad();
    all.push_back(reshape(loss.detach(), {1}));
  }
  return concat(all);
}

void probe(const char* from, const char* to) {
  const Checkpoint input = load_safetensors(from);
  const Tensor x = *input.find("x"), y = *input.find("y");
  nn::Transformer model(options_of(input));
  model.load_state(weights_of(input));
  Checkpoint output;
  output.tensors.emplace_back("logits", model(at(x, 0)).detach());
  output.tensors.emplace_back("losses", losses(model, x, y));
  output.tensors.emplace_back("trained_logits", model(at(x, 0)).detach());
  for (const auto& [name, t] : model.state()) output.tensors.emplace_back("model." + name, t);
  save_safetensors(to, output);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    probe(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 3;
  }
  return 0;
}
