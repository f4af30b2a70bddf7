// Training on digits: the loop, its checkpoints and what it shows.
#pragma once
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "common/log.h"
#include "common/output.h"
#include "common/progress.h"
#include "ebb/ebb.h"
#include "mnist/batch.h"
#include "mnist/checkpoint.h"

namespace mnist {

// Everything that decides what a run computes; a resumed run must have the same.
struct Config {
  std::string model = "default";
  std::int64_t epochs = 3;
  std::int64_t batch_size = 64;
  double rate = 0;  // peak
  std::int64_t seed = 0;
  bool augment = true;
};

class Trainer {
 public:
  // `test` is measured after each epoch. Error `value` when a batch is larger than the data.
  Trainer(const Config& config, DeviceDigits train, DeviceDigits test, std::uint32_t data_checksum);

  void resume(const std::filesystem::path& checkpoint);  // error `format` unless the same run
  std::int64_t step() const { return step_; }
  std::int64_t total_steps() const { return config_.epochs * steps_in_epoch_; }

  // Trains to the end, or until a signal asks to stop (then what was reached is saved, and false
  // returned). Files: checkpoint.safetensors, metrics.jsonl, curves.png.
  bool run(const example::OutputFolder& out);

  // One step and nothing written: whether it runs at all. Returns the loss.
  double try_step();

  double test_accuracy() const { return test_accuracy_; }

 private:
  void train_step();
  void read_losses(bool show);
  void start_clock();
  void end_epoch(const example::OutputFolder& out);
  void save(const std::filesystem::path& path);
  Description description() const;
  std::int64_t epoch() const { return step_ / steps_in_epoch_; }
  void shuffle();

  Config config_;
  DeviceDigits train_;
  DeviceDigits test_;
  std::uint32_t data_checksum_;
  std::int64_t steps_in_epoch_;
  std::unique_ptr<ebb::nn::Module> model_;
  ebb::nn::AdamW optimizer_;
  ebb::nn::Schedule rate_;
  std::int64_t step_ = 0;
  std::chrono::steady_clock::time_point clock_start_;  // training alone is timed, epoch by epoch
  std::int64_t clock_step_ = 0;
  ebb::Tensor order_;    // of this epoch
  ebb::Tensors losses_;  // since they were last read: reading waits for the device
  Batch batch_;
  ebb::Tensor logits_;
  double shown_loss_ = 0;
  double shown_accuracy_ = 0;
  double test_accuracy_ = 0;
  example::Progress* progress_ = nullptr;
  example::MetricsLog* log_ = nullptr;
};

}  // namespace mnist
