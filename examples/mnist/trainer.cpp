#include "mnist/trainer.h"

#include "common/text.h"
#include "mnist/accuracy.h"
#include "mnist/model.h"

namespace mnist {

using namespace ebb;
using example::shown;

namespace {

std::unique_ptr<nn::Module> seeded_model(const Config& config, Device device) {
  manual_seed(static_cast<std::uint64_t>(config.seed));
  auto model = make_model(config.model);
  model->to(device);
  return model;
}

example::Pace pace_of(const Config& config, std::int64_t digits) {
  const std::int64_t steps = digits / config.batch_size;
  require(steps >= 1, Kind::value, "train_mnist", "--batch-size is larger than the data",
          text(config.batch_size, " of ", digits, " digits"), "at most as many as there are");
  return {config.epochs * steps, steps, config.batch_size, "images", 200};
}

}  // namespace

Trainer::Trainer(const Config& config, DeviceDigits train, DeviceDigits test,
                 std::uint32_t data_checksum)
    : example::Trainer(pace_of(config, train.labels.numel()), train.pixels.device()),
      config_(config),
      train_(std::move(train)),
      test_(std::move(test)),
      data_checksum_(data_checksum),
      model_(seeded_model(config, device())),
      optimizer_(model_->parameters()),
      rate_(nn::one_cycle({.peak = config.rate, .steps = total_steps()})) {}

// Each epoch's order and distortions are streams of their own, so that a run can start anywhere.
void Trainer::shuffle() {
  Generator generator(static_cast<std::uint64_t>(config_.seed));
  generator.restore(generator.seed(),
                    (std::uint64_t{1} << 40) + static_cast<std::uint64_t>(epoch()));
  order_ = permutation(train_.labels.numel(), generator, device());
}

Tensors Trainer::train_step() {
  const std::int64_t place = step() % pace().section;
  if (place == 0 || !order_.defined()) shuffle();
  const Stream stream{static_cast<std::uint64_t>(config_.seed),
                      (std::uint64_t{1} << 41) + static_cast<std::uint64_t>(epoch())};
  const Batch batch = make_batch(train_, order_, place * config_.batch_size, config_.batch_size,
                                 {config_.augment, stream});
  const Tensor logits = (*model_)(batch.x);
  const Tensor loss = cross_entropy(logits, batch.labels, {.check_targets = false});
  loss.backward();
  optimizer_.step(rate_(step()));
  optimizer_.zero_grad();
  if (step() % 10 == 0) answers_.push_back({step() + 1, logits.detach(), batch.labels});
  return {loss};
}

void Trainer::have_read(std::span<const float>) {
  for (const Answers& answers : answers_) {
    const auto count = static_cast<double>(correct(answers.logits, answers.labels));
    const double share = count / static_cast<double>(config_.batch_size);
    shown_accuracy_ = blended(shown_accuracy_, share, answers.step);
  }
  answers_.clear();
}

std::string Trainer::stage() const {
  const std::int64_t current = (step() - 1) / pace().section + 1;
  return "epoch " + shown(current) + "/" + shown(config_.epochs);
}

example::Json Trainer::figures() const {
  return {{"accuracy", shown_accuracy_}, {"rate", rate_(step() - 1)}};
}

Trainer::Report Trainer::end_section(const Section& section) {
  test_accuracy_ = accuracy(*model_, test_);
  const std::string rate = example::with_commas(section.rate);
  return {{{"epoch", epoch()},
           {"test_accuracy", test_accuracy_},
           {"seconds", section.seconds},
           {"images_per_second", section.rate}},
          stage() + example::formatted(": test accuracy %.2f %%, %.2f s, %s images/s",
                                       100 * test_accuracy_, section.seconds, rate.c_str())};
}

std::vector<example::Panel> Trainer::panels(const std::vector<example::Json>& records) const {
  using example::curve;
  return {{"loss", "step", {curve(records, "loss", "training loss", example::blue)}},
          {"accuracy",
           "step",
           {curve(records, "accuracy", "training", example::blue),
            curve(records, "test_accuracy", "test", example::orange, true)}}};
}

example::Run Trainer::state() {
  return {{{"format", checkpoint_format},
           {"model", config_.model},
           {"epochs", shown(config_.epochs)},
           {"batch_size", shown(config_.batch_size)},
           {"lr", shown(config_.rate)},
           {"seed", shown(config_.seed)},
           {"augment", config_.augment ? "1" : "0"},
           {"data_crc32", shown(std::int64_t{data_checksum_})}},
          *model_,
          optimizer_,
          step(),
          {{"shown_loss", shown(shown_loss())}, {"shown_accuracy", shown(shown_accuracy_)}}};
}

void Trainer::save(const example::OutputFolder& out) {
  save_run(out / "checkpoint.safetensors", state());
}

void Trainer::resume(const std::filesystem::path& path) {
  example::Run run = state();
  load_run(path, run, total_steps());
  go_on_from(run.step, noted(run, "shown_loss", path));
  shown_accuracy_ = noted(run, "shown_accuracy", path);
  order_ = {};
  if (step() == total_steps()) test_accuracy_ = accuracy(*model_, test_);
}

}  // namespace mnist
