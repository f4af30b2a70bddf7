#include "common/trainer.h"

#include <cmath>
#include <limits>

#include "common/checkpoint.h"
#include "common/exit.h"
#include "common/signals.h"
#include "common/text.h"

namespace example {

using namespace ebb;

namespace {

constexpr std::int64_t log_interval = 50;

// What a run writes later than its first checkpoint would pass for its own. Its checkpoint stays
// until there is another.
void forget_older_run(const OutputFolder& out) {
  for (const char* name : {"best.safetensors", "curves.png"}) {
    std::error_code failed;
    std::filesystem::remove(out / name, failed);
    require(!failed, Kind::io, "out", text("cannot remove ", (out / name).string()),
            failed.message(), "a file, or none");
  }
}

}  // namespace

double Trainer::shown_accuracy() const { return std::numeric_limits<double>::quiet_NaN(); }

void Trainer::take_step() {
  Tensors losses;
  for (const Tensor& x : train_step()) losses.push_back(reshape(x.detach().to(Dtype::f32), {1}));
  losses_.push_back(std::move(losses));
  ++step_;
}

double Trainer::try_step() {
  take_step();
  read_losses();
  return shown_loss_;
}

// Reads what steps returned since the last time, and notices the first that is not finite.
void Trainer::read_losses() {
  Tensors all;
  for (const Tensors& one : losses_) all.insert(all.end(), one.begin(), one.end());
  const auto values = concat(all, 0).to_vector<float>();
  const std::vector<std::string> names = watched();
  const std::int64_t first = step_ - static_cast<std::int64_t>(losses_.size()) + 1;
  losses_.clear();
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t which = i % names.size();
    const auto step = first + static_cast<std::int64_t>(i / names.size());
    if (!std::isfinite(values[i]))
      throw Stop(exit_code::non_finite, "training stopped: the " + names[which] + " of step " +
                                            shown(step) + " is " + shown(double{values[i]}) +
                                            "; start again with a lower --lr");
    if (which == 0) shown_loss_ = blended(shown_loss_, values[i], step);
  }
  have_read(std::span(values).last(names.size()));
}

std::optional<int> Trainer::carry_out(const Orders& orders) {
  if (orders.dry_run) {
    std::printf("one step: loss %.4f\n", try_step());
    return exit_code::ok;
  }
  const OutputFolder out(orders.out);
  if (orders.resume) {
    resume(out / "checkpoint.safetensors");
    std::printf("resumed at step %lld of %lld\n", static_cast<long long>(step()),
                static_cast<long long>(total_steps()));
  }
  catch_signals();
  if (run(out)) return {};
  std::printf("stopped at step %lld; go on with --resume\n", static_cast<long long>(step()));
  return stop_code();
}

bool Trainer::run(const OutputFolder& out) {
  if (step_ == 0) forget_older_run(out);
  MetricsLog log(out / "metrics.jsonl", step_ == 0 ? -1 : step_);
  Progress progress(stdout, pace_.unit, pace_.steps * pace_.items, step_ * pace_.items,
                    pace_.show_interval, pace_.effort);
  start_clock();
  while (step_ < pace_.steps) {
    take_step();
    const bool due = progress.due();
    const bool logged = step_ % log_interval == 0;
    const bool last = step_ % pace_.section == 0 || step_ == pace_.steps;
    const bool stopping = stop_signal() != 0;  // one that comes later waits for the next step
    if (!device_.is_cuda() || due || logged || last || stopping) read_losses();
    if (due || last) progress.update(stage(), step_ * pace_.items, shown_loss_, shown_accuracy());
    if (logged) {
      Json record = {{"step", step_}, {"loss", shown_loss_}};
      record.update(figures());
      log.write(record);
    }
    if (last) {
      finish_section(out, log, progress);
      start_clock();
    } else if (stopping) {
      save(out);
    }
    if (stopping && step_ < pace_.steps) return false;
  }
  return true;
}

void Trainer::start_clock() {
  synchronize(device_);
  clock_step_ = step_;
  clock_start_ = std::chrono::steady_clock::now();
}

void Trainer::finish_section(const OutputFolder& out, MetricsLog& log, Progress& progress) {
  synchronize(device_);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - clock_start_;
  const auto items = static_cast<double>((step_ - clock_step_) * pace_.items);
  const Report report = end_section({time.count(), items / time.count()});
  Json record = {{"step", step_}};
  record.update(report.record);
  log.write(record);
  save(out);
  write_curves(out / "curves.png", panels(log.records()));
  progress.line(report.line);
  progress.restart(step_ * pace_.items);
}

Curve curve(const std::vector<Json>& records, const std::string& key, const std::string& name,
            Color color, bool dots) {
  Curve curve{name, color, {}, {}, dots};
  for (const Json& record : records) {
    if (!record.contains(key) || !record[key].is_number()) continue;
    curve.x.push_back(record["step"]);
    curve.y.push_back(record[key]);
  }
  return curve;
}

int report_target(bool reached, const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
  if (reached) return exit_code::ok;
  std::fprintf(stderr, "error: the target was missed\n");
  return exit_code::missed_target;
}

}  // namespace example
