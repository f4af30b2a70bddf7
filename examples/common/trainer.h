// The loop of a training program: steps in sections (epochs, or the steps between two
// evaluations), what it shows and writes meanwhile, and how it stops and is resumed.
#pragma once
#include <chrono>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/output.h"
#include "common/plot.h"
#include "common/progress.h"
#include "ebb/ebb.h"

namespace example {

struct Pace {
  std::int64_t steps;               // in the whole run
  std::int64_t section;             // steps; the last section may have fewer
  std::int64_t items;               // a step
  std::string unit;                 // of the items
  std::int64_t show_interval = 50;  // steps from one line to the next where there is no terminal
  Effort effort = {};
};

class Trainer {
 public:
  virtual ~Trainer() = default;

  std::int64_t step() const { return step_; }
  std::int64_t total_steps() const { return pace_.steps; }

  // What the flags of every training program ask for: one step, or the run, gone on with if it is
  // to be. The program's exit code where it ends with that, none where there is a result to report.
  struct Orders {
    std::string out;
    bool resume;
    bool dry_run;
  };
  std::optional<int> carry_out(const Orders& orders);

  virtual void resume(const std::filesystem::path& checkpoint) = 0;  // `format` unless the same run

  // Trains to the end, or until a signal asks to stop (then what was reached is saved, and false
  // returned). Files: metrics.jsonl, curves.png, and what save() writes. From step 0 on, those of
  // an older run in the folder go. Exits with `non_finite` at a loss that is not a number.
  bool run(const OutputFolder& out);

  // One step and nothing written: whether it runs at all. Returns the loss; exits as run() does.
  double try_step();

 protected:
  Trainer(Pace pace, ebb::Device device) : pace_(std::move(pace)), device_(device) {}

  struct Section {
    double seconds;  // of training alone
    double rate;     // items a second
  };
  struct Report {
    Json record;  // for metrics.jsonl, after the step
    std::string line;
  };

  // A step of training: its loss, then more one-element tensors that must stay finite, as
  // watched() names them.
  virtual ebb::Tensors train_step() = 0;
  virtual std::vector<std::string> watched() const { return {"loss"}; }
  // Called whenever losses have been read, with the newest step's values.
  virtual void have_read(std::span<const float> newest) = 0;
  virtual std::string stage() const = 0;
  virtual double shown_accuracy() const;  // NaN: none
  virtual Json figures() const = 0;       // for metrics.jsonl, after step and loss
  virtual Report end_section(const Section& section) = 0;
  virtual void save(const OutputFolder& out) = 0;
  virtual std::vector<Panel> panels(const std::vector<Json>& records) const = 0;

  // A running mean, moved on by a step: it depends on the steps alone, not on when they are read.
  static double blended(double mean, double value, std::int64_t step) {
    return mean + (step == 1 ? 1 : 0.1) * (value - mean);
  }

  const Pace& pace() const { return pace_; }
  ebb::Device device() const { return device_; }
  double shown_loss() const { return shown_loss_; }
  void go_on_from(std::int64_t step, double shown_loss) { step_ = step, shown_loss_ = shown_loss; }
  void set_effort(Effort effort) { pace_.effort = effort; }

 private:
  void take_step();
  void read_losses();
  void start_clock();
  void finish_section(const OutputFolder& out, MetricsLog& log, Progress& progress);

  Pace pace_;
  ebb::Device device_;
  std::int64_t step_ = 0;
  std::chrono::steady_clock::time_point clock_start_;  // training alone is timed
  std::int64_t clock_step_ = 0;
  std::vector<ebb::Tensors> losses_;  // since they were last read: reading waits for the device
  double shown_loss_ = 0;             // blended
};

// The records' values under `key`, against their steps.
Curve curve(const std::vector<Json>& records, const std::string& key, const std::string& name,
            Color color, bool dots = false);

// Prints the line that says what was reached, and returns a program's exit code.
int report_target(bool reached, const std::string& line);

}  // namespace example
