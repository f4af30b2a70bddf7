// Training a transformer.
#pragma once
#include <memory>

#include "common/trainer.h"
#include "transformer/task.h"

namespace transformer {

class Trainer : public example::Trainer {
 public:
  Trainer(const Config& config, std::unique_ptr<Task> task, bool recompute, ebb::Device device);

  void resume(const std::filesystem::path& checkpoint) override;
  double measured() const { return measured_; }  // at the end of the run; see Task
  double best() const { return best_; }
  const Task& task() const { return *task_; }
  std::int64_t parameters() const;

 private:
  ebb::Tensors train_step() override;
  std::vector<std::string> watched() const override { return {"loss", "gradient norm"}; }
  void have_read(std::span<const float> newest) override { gradient_norm_ = newest[1]; }
  std::string stage() const override;
  example::Json figures() const override;
  Report end_section(const Section& section) override;
  void save(const example::OutputFolder& out) override;
  std::vector<example::Panel> panels(const std::vector<example::Json>& records) const override;

  void learn();  // one step, with nothing of it decided here: it may be captured
  example::Run state();
  std::string sample();

  Config config_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<ebb::nn::Transformer> model_;
  ebb::Tensors parameters_;
  ebb::nn::AdamW optimizer_;
  ebb::nn::Schedule rate_;
  ebb::Tensor rates_;  // of all steps, on the device
  ebb::Graph graph_;   // of learn()
  ebb::Tensor loss_;
  ebb::Tensor norm_;
  double gradient_norm_ = 0;
  double measured_ = 0;
  double best_;
  bool improved_ = false;  // at the evaluation that has just been made
};

}  // namespace transformer
