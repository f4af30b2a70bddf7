#include "common/checkpoint.h"

#include <algorithm>
#include <cmath>

#include "common/exit.h"
#include "common/text.h"

namespace example {

using namespace ebb;

namespace {

std::uint64_t number(const Description& metadata, const char* key) {
  const auto found = metadata.find(key);
  std::uint64_t value = 0;
  require(found != metadata.end() && read_number(found->second, value), Kind::format, "resume",
          text("no whole number under ", key, " in the checkpoint"), "weights only",
          "a checkpoint to resume from");
  return value;
}

nn::NamedTensors with_prefix(const Checkpoint& checkpoint, const std::string& prefix) {
  nn::NamedTensors found;
  for (const auto& [name, t] : checkpoint.tensors)
    if (name.starts_with(prefix)) found.emplace_back(name.substr(prefix.size()), t);
  return found;
}

bool is_finite(const Tensor& t) {
  const auto values = t.to(Dtype::f32).to_vector<float>();
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

void require_finite(const Checkpoint& checkpoint, std::int64_t step) {
  for (const auto& [name, t] : checkpoint.tensors) {
    if (is_finite(t)) continue;
    throw Stop(exit_code::non_finite, "training stopped: after step " + std::to_string(step) +
                                          ", " + name +
                                          " is not finite; start again with a lower --lr");
  }
}

// The system's "no such file" would not say what makes one.
template <class Maker>
Checkpoint load(const std::filesystem::path& path, const Maker& maker) {
  std::error_code unknown;
  const bool missing = !std::filesystem::exists(path, unknown) && !unknown;
  require(!missing, Kind::io, "checkpoint", text("there is no ", path.string()), "", maker);
  return load_safetensors(path);
}

}  // namespace

void save_run(const std::filesystem::path& path, const Run& run) {
  Checkpoint checkpoint;
  for (const auto& [name, t] : run.model.state())
    checkpoint.tensors.emplace_back("model." + name, t);
  for (const auto& [name, t] : run.optimizer.state())
    checkpoint.tensors.emplace_back("optimizer." + name, t);
  require_finite(checkpoint, run.step);
  checkpoint.metadata = run.description;
  checkpoint.metadata.insert(run.notes.begin(), run.notes.end());
  checkpoint.metadata["step"] = shown(run.step);
  checkpoint.metadata["random_drawn"] = std::to_string(default_generator().drawn());
  save_safetensors(path, checkpoint);
}

void load_run(const std::filesystem::path& path, Run& run, std::int64_t last_step) {
  const Checkpoint checkpoint = load(path, "a run that has saved one; start without --resume");
  const auto there = [&](const std::string& key) {
    const auto found = checkpoint.metadata.find(key);
    return found == checkpoint.metadata.end() ? "nothing" : found->second;
  };
  const auto compare = [&](const std::string& key) {
    const std::string& here = run.description.at(key);
    require(there(key) == here, Kind::format, "resume",
            text(path.string(), " is of another run: its ", key, " differs"), there(key), here);
  };
  for (const char* first : {"format", "task", "model"})  // before what follows from them
    if (run.description.contains(first)) compare(first);
  for (const auto& [key, value] : run.description) compare(key);
  const std::uint64_t step = number(checkpoint.metadata, "step");
  const std::uint64_t drawn = number(checkpoint.metadata, "random_drawn");
  require(step <= static_cast<std::uint64_t>(last_step), Kind::format, "resume",
          "the checkpoint is past the end", step, text("at most ", last_step));
  run.model.load_state(weights(checkpoint, path));
  run.step = static_cast<std::int64_t>(step);
  run.optimizer.load_state(with_prefix(checkpoint, "optimizer."), run.step);
  for (auto& [key, value] : run.notes) value = there(key);
  default_generator().restore(number(checkpoint.metadata, "seed"), drawn);
}

double noted(const Run& run, const std::string& key, const std::filesystem::path& path) {
  double value = 0;
  require(read_number(run.notes.at(key), value), Kind::format, "resume",
          text(path.string(), " does not say how its run stood: no number under ", key),
          run.notes.at(key), "a number");
  return value;
}

Checkpoint load_checkpoint(const std::filesystem::path& path, const std::string& format,
                           const std::string& program) {
  Checkpoint checkpoint = load(path, text("one that ", program, " has written"));
  const std::string& its = described(checkpoint, "format", path, program);
  require(its == format, Kind::format, "load_model",
          text(path.string(), " is no checkpoint of this ", program), its, format);
  return checkpoint;
}

const std::string& described(const Checkpoint& checkpoint, const std::string& key,
                             const std::filesystem::path& path, const std::string& program) {
  const auto found = checkpoint.metadata.find(key);
  require(found != checkpoint.metadata.end(), Kind::format, "load_model",
          text(path.string(), " is no checkpoint of ", program),
          text("no ", key, " in its metadata"), text("what ", program, " wrote"));
  return found->second;
}

nn::NamedTensors weights(const Checkpoint& checkpoint, const std::filesystem::path& path) {
  nn::NamedTensors found = with_prefix(checkpoint, "model.");
  for (const auto& [name, t] : found)
    require(is_finite(t), Kind::format, "checkpoint", text(path.string(), ": bad ", name),
            "NaN or infinity in it", "finite numbers");
  return found;
}

}  // namespace example
