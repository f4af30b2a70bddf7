// A run on disk: the net's weights, the optimizer's memory, the place in the run and in the random
// numbers, and what decides the run, which has to be the same where it goes on.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "ebb/ebb.h"

namespace mnist {

// What decides a run, by name; "model" and "seed" among it.
using Description = std::map<std::string, std::string>;

struct Run {
  Description description;
  ebb::nn::Module& model;
  ebb::nn::AdamW& optimizer;
  std::int64_t step;
};

// Whole or not at all. Exits with `non_finite`, naming the tensor, before anything is written when
// the run holds a value that is not finite: the last sound checkpoint stays.
void save_run(const std::filesystem::path& path, const Run& run);

// Brings model, optimizer, step and ebb's random numbers back. Errors as load_safetensors(),
// `format` when the checkpoint is of another run, past `last_step`, or has weights only.
void load_run(const std::filesystem::path& path, Run& run, std::int64_t last_step);

// A model for evaluation or prediction from a checkpoint: its weights, and the net they say they
// are of. Errors as load_safetensors(), `format` when it is no checkpoint of this example.
std::unique_ptr<ebb::nn::Module> load_model(const std::filesystem::path& path, ebb::Device device);

}  // namespace mnist
