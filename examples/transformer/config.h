// Everything that decides what a run computes; a resumed run must have the same.
#pragma once
#include <string>

#include "common/checkpoint.h"
#include "ebb/nn/transformer.h"

namespace transformer {

struct Config {
  std::string task = "addition";  // or sort, text
  std::string architecture = "gpt";
  std::string dtype = "f32";
  std::int64_t digits = 3;       // of addition and sort
  std::int64_t block_size = 64;  // of text
  std::int64_t n_layer = 2;
  std::int64_t n_head = 4;
  std::int64_t n_embd = 64;
  std::int64_t least_vocabulary = 0;  // the table has at least as many rows
  double dropout = 0;
  std::int64_t max_iters = 2000;
  std::int64_t batch_size = 128;
  std::int64_t grad_accum = 1;
  double lr = 3e-3;
  double min_lr = 3e-5;
  std::int64_t warmup_iters = 100;
  double weight_decay = 0.01;
  double beta2 = 0.95;
  double grad_clip = 1;
  std::int64_t eval_interval = 500;
  std::int64_t seed = 0;

  friend bool operator==(const Config&, const Config&) = default;
};

// The sizes and settings that --config names, for a task: tiny, char (nanoGPT's: on a GPU its full
// one, on the CPU the one for laptops at twice its rate) or gpt2.
Config preset(const std::string& task, const std::string& name, bool on_gpu);

// What the task is to reach with exactly these settings: a loss, or a percentage. NaN: nothing.
double default_target(const Config& config, const std::string& name, bool on_gpu);

// The net, once the task has said how many characters it has and how long its sequences are.
ebb::nn::TransformerOptions model_options(const Config& config, std::int64_t vocabulary,
                                          std::int64_t context);

// All of it but the net, by name, for a checkpoint.
example::Description describe(const Config& config);

}  // namespace transformer
