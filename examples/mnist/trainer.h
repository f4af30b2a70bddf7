// Training on digits.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "common/checkpoint.h"
#include "common/trainer.h"
#include "mnist/batch.h"

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

class Trainer : public example::Trainer {
 public:
  // `test` is measured after each epoch. Error `value` when a batch is larger than the data.
  Trainer(const Config& config, DeviceDigits train, DeviceDigits test, std::uint32_t data_checksum);

  void resume(const std::filesystem::path& checkpoint) override;
  double test_accuracy() const { return test_accuracy_; }

 private:
  ebb::Tensors train_step() override;
  void have_read(std::span<const float>) override;
  std::string stage() const override;
  double shown_accuracy() const override { return shown_accuracy_; }
  example::Json figures() const override;
  Report end_section(const Section& epoch) override;
  void save(const example::OutputFolder& out) override;
  std::vector<example::Panel> panels(const std::vector<example::Json>& records) const override;

  example::Run state();
  std::int64_t epoch() const { return step() / pace().section; }
  void shuffle();

  Config config_;
  DeviceDigits train_;
  DeviceDigits test_;
  std::uint32_t data_checksum_;
  std::unique_ptr<ebb::nn::Module> model_;
  ebb::nn::AdamW optimizer_;
  ebb::nn::Schedule rate_;
  ebb::Tensor order_;  // of this epoch
  struct Answers {
    std::int64_t step;
    ebb::Tensor logits, labels;
  };
  std::vector<Answers> answers_;  // to count the right ones of, when losses are read
  double shown_accuracy_ = 0;     // blended, of every tenth step
  double test_accuracy_ = 0;
};

}  // namespace mnist
