#include "transformer/config.h"

#include <algorithm>
#include <limits>

#include "common/text.h"

namespace transformer {

using example::shown;
using namespace ebb;

namespace {

Config tiny(const std::string& task) {
  Config c;
  c.task = task;
  if (task == "sort") c.digits = 8, c.max_iters = 3000;
  if (task == "text") c.batch_size = 16;
  return c;
}

Config characters(const std::string& task, bool on_gpu) {
  Config c = tiny(task);
  c.batch_size = on_gpu ? 64 : 12;
  c.block_size = on_gpu ? 256 : 64;
  c.n_layer = c.n_head = on_gpu ? 6 : 4;
  c.n_embd = on_gpu ? 384 : 128;
  c.dropout = on_gpu ? 0.2 : 0;
  c.max_iters = on_gpu ? 5000 : 2000;
  c.lr = on_gpu ? 1e-3 : 2e-3;
  c.min_lr = c.lr / 10;
  c.weight_decay = 0.1;
  c.beta2 = 0.99;
  c.eval_interval = on_gpu ? 250 : 500;
  if (on_gpu) c.dtype = "bf16";
  return c;
}

// GPT-2's smallest, 124M.
Config gpt2(const std::string& task, bool on_gpu) {
  Config c = characters(task, on_gpu);
  c.batch_size = 32;
  c.block_size = 1024;
  c.n_layer = c.n_head = 12;
  c.n_embd = 768;
  c.least_vocabulary = 50304;
  c.dropout = 0;
  c.lr = 6e-4;
  c.min_lr = 6e-5;
  c.beta2 = 0.95;
  return c;
}

}  // namespace

Config preset(const std::string& task, const std::string& name, bool on_gpu) {
  if (name == "char") return characters(task, on_gpu);
  return name == "gpt2" ? gpt2(task, on_gpu) : tiny(task);
}

double default_target(const Config& config, const std::string& name, bool on_gpu) {
  if (config.task == "addition") return 99;
  if (config.task == "sort") return 100;
  Config plain = preset(config.task, name, on_gpu);
  plain.seed = config.seed;
  if (name != "char" || config != plain) return std::numeric_limits<double>::quiet_NaN();
  return on_gpu ? 1.48 : 1.90;
}

nn::TransformerOptions model_options(const Config& c, std::int64_t vocabulary,
                                     std::int64_t context) {
  nn::TransformerOptions o{.vocabulary = std::max(vocabulary, c.least_vocabulary),
                           .context = context,
                           .layers = c.n_layer,
                           .heads = c.n_head,
                           .width = c.n_embd,
                           .dropout = c.dropout};
  if (c.architecture == "llama") {
    o.positions = nn::Positions::rotary;
    o.feed_forward = nn::FeedForwardKind::swiglu;
    o.norm = nn::Norm::rms;
  }
  return o;
}

example::Description describe(const Config& c) {
  return {{"task", c.task},
          {"dtype", c.dtype},
          {"dropout", shown(c.dropout)},
          {"max_iters", shown(c.max_iters)},
          {"batch_size", shown(c.batch_size)},
          {"grad_accum", shown(c.grad_accum)},
          {"lr", shown(c.lr)},
          {"min_lr", shown(c.min_lr)},
          {"warmup_iters", shown(c.warmup_iters)},
          {"weight_decay", shown(c.weight_decay)},
          {"beta2", shown(c.beta2)},
          {"grad_clip", shown(c.grad_clip)},
          {"eval_interval", shown(c.eval_interval)},
          {"seed", shown(c.seed)}};
}

}  // namespace transformer
