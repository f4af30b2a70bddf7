#include "mnist/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "common/exit.h"
#include "mnist/model.h"

namespace mnist {

using namespace ebb;

namespace {

std::uint64_t number(const std::map<std::string, std::string>& metadata, const char* key) {
  const auto found = metadata.find(key);
  std::uint64_t value = 0;
  bool ok = found != metadata.end();
  if (ok) {
    const std::string& s = found->second;
    const auto [end, failed] = std::from_chars(s.data(), s.data() + s.size(), value);
    ok = failed == std::errc{} && end == s.data() + s.size();
  }
  require(ok, Kind::format, "resume", text("no whole number under ", key, " in the checkpoint"),
          "weights only", "a checkpoint to resume from");
  return value;
}

nn::NamedTensors with_prefix(const Checkpoint& checkpoint, const std::string& prefix) {
  nn::NamedTensors found;
  for (const auto& [name, t] : checkpoint.tensors)
    if (name.starts_with(prefix)) found.emplace_back(name.substr(prefix.size()), t);
  return found;
}

void require_finite(const Checkpoint& checkpoint, std::int64_t step) {
  for (const auto& [name, t] : checkpoint.tensors) {
    const auto values = t.to_vector<float>();
    if (std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
      continue;
    throw example::Stop(example::exit_code::non_finite,
                        "training stopped: after step " + std::to_string(step) + ", " + name +
                            " is not finite; lower --lr, or resume from the last checkpoint");
  }
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
  checkpoint.metadata["step"] = std::to_string(run.step);
  checkpoint.metadata["random_drawn"] = std::to_string(default_generator().drawn());
  save_safetensors(path, checkpoint);
}

void load_run(const std::filesystem::path& path, Run& run, std::int64_t last_step) {
  const Checkpoint checkpoint = load_safetensors(path);
  const auto compare = [&](const std::string& key) {
    const auto found = checkpoint.metadata.find(key);
    const std::string there = found == checkpoint.metadata.end() ? "nothing" : found->second;
    const std::string& here = run.description.at(key);
    require(there == here, Kind::format, "resume",
            text(path.string(), " is of another run: its ", key, " differs"), there, here);
  };
  compare("model");  // before what follows from it
  for (const auto& [key, value] : run.description) compare(key);
  const std::uint64_t step = number(checkpoint.metadata, "step");
  const std::uint64_t drawn = number(checkpoint.metadata, "random_drawn");
  require(step <= static_cast<std::uint64_t>(last_step), Kind::format, "resume",
          "the checkpoint is past the end", step, text("at most ", last_step));
  run.model.load_state(with_prefix(checkpoint, "model."));
  run.step = static_cast<std::int64_t>(step);
  run.optimizer.load_state(with_prefix(checkpoint, "optimizer."), run.step);
  default_generator().restore(number(checkpoint.metadata, "seed"), drawn);
}

std::unique_ptr<nn::Module> load_model(const std::filesystem::path& path, Device device) {
  const Checkpoint checkpoint = load_safetensors(path);
  const auto found = checkpoint.metadata.find("model");
  require(found != checkpoint.metadata.end(), Kind::format, "load_model",
          text(path.string(), " is no checkpoint of train_mnist"), "no model in its metadata",
          "default or reference");
  auto model = make_model(found->second);
  model->load_state(with_prefix(checkpoint, "model."));
  model->to(device);
  model->eval();
  return model;
}

}  // namespace mnist
