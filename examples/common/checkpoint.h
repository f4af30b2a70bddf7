// A run on disk: the net's weights, the optimizer's memory, the place in the run and in the random
// numbers, and what decides the run, which has to be the same where it goes on.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "ebb/ebb.h"

namespace example {

// What decides a run, by name; "format", "model" and "seed" among it.
using Description = std::map<std::string, std::string>;

struct Run {
  Description description;
  ebb::nn::Module& model;
  ebb::nn::Optimizer& optimizer;
  std::int64_t step = 0;
  Description notes = {};  // what else it has to remember, with the values of a run's start
};

// Whole or not at all. Exits with `non_finite`, naming the tensor, before anything is written when
// the run holds a value that is not finite: the last sound checkpoint stays.
void save_run(const std::filesystem::path& path, const Run& run);

// Brings model, optimizer, step, notes and ebb's random numbers back. Errors as
// load_safetensors(), `format` when the checkpoint is of another run, past `last_step`, or has
// weights only.
void load_run(const std::filesystem::path& path, Run& run, std::int64_t last_step);

// A note that is a number, of a run that load_run() has brought back. Error `format` if it is none.
double noted(const Run& run, const std::string& key, const std::filesystem::path& path);

// What `program` wrote at `path`. Error `format` unless it is in this format, which a newer version
// of the program may have changed.
ebb::Checkpoint load_checkpoint(const std::filesystem::path& path, const std::string& format,
                                const std::string& program);

// One entry of the metadata. Error `format`, saying that the file is not `program`'s, without it.
const std::string& described(const ebb::Checkpoint& checkpoint, const std::string& key,
                             const std::filesystem::path& path, const std::string& program);

// The model's part of a checkpoint, for load_state(). Error `format` when it is not all finite:
// such a net answers everything with NaN.
ebb::nn::NamedTensors weights(const ebb::Checkpoint& checkpoint, const std::filesystem::path& path);

}  // namespace example
