#include "mnist/trainer.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "common/exit.h"
#include "common/plot.h"
#include "common/signals.h"
#include "mnist/accuracy.h"
#include "mnist/model.h"

namespace mnist {

using namespace ebb;

namespace {

constexpr std::int64_t log_interval = 50;
constexpr const char* format = "ebb mnist 1";

// The shortest text that reads back as the same number, in every locale.
template <class T>
std::string shown(T value) {
  std::array<char, 32> digits;
  return {digits.data(), std::to_chars(digits.begin(), digits.end(), value).ptr};
}

std::unique_ptr<nn::Module> seeded_model(const Config& config, Device device) {
  manual_seed(static_cast<std::uint64_t>(config.seed));
  auto model = make_model(config.model);
  model->to(device);
  return model;
}

void draw_curves(const std::filesystem::path& path, const std::vector<example::Json>& records) {
  example::Curve loss{"training loss", example::blue, {}, {}};
  example::Curve training{"training", example::blue, {}, {}};
  example::Curve test{"test", example::orange, {}, {}, true};
  for (const example::Json& record : records) {
    const auto add = [&](example::Curve& curve, const char* key) {
      if (!record.contains(key) || !record[key].is_number()) return;
      curve.x.push_back(record["step"]);
      curve.y.push_back(record[key]);
    };
    add(loss, "loss"), add(training, "accuracy"), add(test, "test_accuracy");
  }
  example::write_curves(path, {{"loss", "step", {loss}}, {"accuracy", "step", {training, test}}});
}

}  // namespace

Trainer::Trainer(const Config& config, DeviceDigits train, DeviceDigits test,
                 std::uint32_t data_checksum)
    : config_(config),
      train_(std::move(train)),
      test_(std::move(test)),
      data_checksum_(data_checksum),
      steps_in_epoch_(train_.labels.numel() / config.batch_size),
      model_(seeded_model(config, train_.pixels.device())),
      optimizer_(model_->parameters()) {
  require(steps_in_epoch_ >= 1, Kind::value, "train_mnist", "--batch-size is larger than the data",
          text(config.batch_size, " of ", train_.labels.numel(), " digits"),
          "at most as many as there are");
  rate_ = nn::one_cycle({.peak = config.rate, .steps = total_steps()});
}

// Each epoch's order and distortions are streams of their own, so that a run can start anywhere.
void Trainer::shuffle() {
  Generator generator(static_cast<std::uint64_t>(config_.seed));
  generator.restore(generator.seed(),
                    (std::uint64_t{1} << 40) + static_cast<std::uint64_t>(epoch()));
  order_ = permutation(train_.labels.numel(), generator, train_.labels.device());
}

void Trainer::train_step() {
  const std::int64_t place = step_ % steps_in_epoch_;
  if (place == 0 || !order_.defined()) shuffle();
  const Stream stream{static_cast<std::uint64_t>(config_.seed),
                      (std::uint64_t{1} << 41) + static_cast<std::uint64_t>(epoch())};
  batch_ = make_batch(train_, order_, place * config_.batch_size, config_.batch_size,
                      {config_.augment, stream});
  logits_ = (*model_)(batch_.x);
  const Tensor loss = cross_entropy(logits_, batch_.labels, {.check_targets = false});
  loss.backward();
  optimizer_.step(rate_(step_));
  optimizer_.zero_grad();
  logits_ = logits_.detach();
  losses_.push_back(reshape(loss.detach(), {1}));
  ++step_;
}

double Trainer::try_step() {
  train_step();
  return losses_.back().item();
}

// Reads the losses since the last time, notices the first that is not a number, and shows them.
void Trainer::read_losses(bool show) {
  const auto values = concat(losses_, 0).to_vector<float>();
  const std::int64_t first = step_ - static_cast<std::int64_t>(values.size());
  losses_.clear();
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw example::Stop(example::exit_code::non_finite,
                        "training stopped: the loss of step " +
                            std::to_string(first + static_cast<std::int64_t>(i) + 1) + " is " +
                            shown(values[i]) + "; lower --lr, or resume from the last checkpoint");
  }
  double mean = 0;
  for (const float v : values) mean += v / static_cast<double>(values.size());
  const double share = static_cast<double>(correct(logits_, batch_.labels)) /
                       static_cast<double>(config_.batch_size);
  const double weight = shown_loss_ == 0 ? 1 : 0.1;
  shown_loss_ += weight * (mean - shown_loss_);
  shown_accuracy_ += weight * (share - shown_accuracy_);
  if (!show) return;
  const std::int64_t current = (step_ - 1) / steps_in_epoch_ + 1;
  progress_->update("epoch " + std::to_string(current) + "/" + std::to_string(config_.epochs),
                    step_ * config_.batch_size, shown_loss_, shown_accuracy_);
}

bool Trainer::run(const example::OutputFolder& out) {
  example::MetricsLog log(out / "metrics.jsonl", step_ == 0 ? -1 : step_);
  example::Progress progress(stdout, "images", total_steps() * config_.batch_size,
                             step_ * config_.batch_size, 200);
  log_ = &log;
  progress_ = &progress;
  model_->train();
  start_clock();
  const bool on_cpu = !train_.pixels.device().is_cuda();
  while (step_ < total_steps()) {
    train_step();
    const bool due = progress.due();
    const bool logged = step_ % log_interval == 0;
    const bool last = step_ % steps_in_epoch_ == 0;
    if (on_cpu || due || logged || last || example::stop_signal()) read_losses(due || last);
    if (logged)
      log.write({{"step", step_},
                 {"loss", shown_loss_},
                 {"accuracy", shown_accuracy_},
                 {"rate", rate_(step_ - 1)}});
    if (last) {
      end_epoch(out);
      start_clock();
    } else if (example::stop_signal()) {
      save(out / "checkpoint.safetensors");
    }
    if (example::stop_signal() && step_ < total_steps()) return false;
  }
  return true;
}

void Trainer::start_clock() {
  synchronize(train_.pixels.device());
  clock_step_ = step_;
  clock_start_ = std::chrono::steady_clock::now();
}

void Trainer::end_epoch(const example::OutputFolder& out) {
  synchronize(train_.pixels.device());
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - clock_start_;
  const double rate =
      static_cast<double>((step_ - clock_step_) * config_.batch_size) / time.count();
  test_accuracy_ = accuracy(*model_, test_);
  log_->write({{"step", step_},
               {"epoch", epoch()},
               {"test_accuracy", test_accuracy_},
               {"seconds", time.count()},
               {"images_per_second", rate}});
  save(out / "checkpoint.safetensors");
  draw_curves(out / "curves.png", log_->records());
  char line[128];
  std::snprintf(line, sizeof line, "epoch %lld/%lld: test accuracy %.2f %%, %.2f s, %s images/s",
                static_cast<long long>(epoch()), static_cast<long long>(config_.epochs),
                100 * test_accuracy_, time.count(), example::with_commas(rate).c_str());
  progress_->line(line);
}

Description Trainer::description() const {
  return {{"format", format},
          {"model", config_.model},
          {"epochs", shown(config_.epochs)},
          {"batch_size", shown(config_.batch_size)},
          {"lr", shown(config_.rate)},
          {"seed", shown(config_.seed)},
          {"augment", config_.augment ? "1" : "0"},
          {"data_crc32", shown(data_checksum_)}};
}

void Trainer::save(const std::filesystem::path& path) {
  save_run(path, {description(), *model_, optimizer_, step_});
}

void Trainer::resume(const std::filesystem::path& path) {
  Run run{description(), *model_, optimizer_, 0};
  load_run(path, run, total_steps());
  step_ = run.step;
  order_ = {};
  if (step_ == total_steps()) test_accuracy_ = accuracy(*model_, test_);
}

}  // namespace mnist
