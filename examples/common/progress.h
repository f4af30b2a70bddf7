// What a training run shows: a bar on a terminal, plain lines at intervals elsewhere.
//
//   epoch 1/3 ━━━━━━━━━━━━━━━╸──────── 62%  loss 0.0831  accuracy 97.52%  8,412 images/s  0:21 left
#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace example {

// One moment of a run. A NaN accuracy means that there is none to show.
struct Status {
  std::string stage;  // "epoch 1/3"
  double done = 0;    // of the whole run, 0 … 1
  double loss = 0;
  double accuracy = 0;  // 0 … 1
  double rate = 0;      // items a second; 0: not known yet
  double seconds_left = 0;
  double flops = 0;        // floating-point operations a second; 0: not shown
  double utilisation = 0;  // 0 … 1 of what the device could do; 0: not known
};

// What an item costs in floating-point operations, and how many the device can do in a second;
// 0: not known, not shown.
struct Effort {
  double an_item = 0;
  double peak = 0;
};

struct Style {
  int columns = 80;
  bool unicode = true;
  bool color = true;
};

// The parts in order of worth: what does not fit into `columns` is left out, the bar first shrinks.
std::string bar_text(const Status& status, const std::string& unit, const Style& style);

// Whether LC_ALL, LC_CTYPE or LANG (the first that is set) asks for UTF-8.
bool unicode_locale();

// All of it, without a bar.
std::string plain_text(const Status& status, const std::string& unit);

// "8,412", "12.3 TFLOP/s", "0:21", "1:02:03"
std::string with_commas(double count);
std::string flops_text(double flops);
std::string clock_text(double seconds);

class Progress {
 public:
  // `total` items in the whole run, of which `before` were done by a run that this one resumes.
  // Plain lines come every `interval` steps; on a terminal the bar is drawn ten times a second.
  Progress(std::FILE* out, std::string unit, std::int64_t total, std::int64_t before,
           std::int64_t interval, Effort effort = {});
  ~Progress();  // leaves the cursor on a line of its own
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // To be asked once a step: whether to call update(), whose values may cost a wait for the device.
  bool due();
  void update(const std::string& stage, std::int64_t done, double loss, double accuracy);
  void line(const std::string& text);  // a line that stays, above the bar
  void restart(std::int64_t done);     // the time since the last update was not the items'

 private:
  using Clock = std::chrono::steady_clock;
  double measure_rate(std::int64_t done);
  void write(const std::string& text);

  std::FILE* out_;
  std::string unit_;
  std::int64_t total_;
  std::int64_t interval_;
  Effort effort_;
  std::int64_t calls_ = 0;
  bool terminal_;
  bool drawn_ = false;  // a bar stands on the current line
  bool closed_ = false;
  Clock::time_point shown_;
  Clock::time_point mark_time_;  // the start of the current window
  std::int64_t mark_done_;
  double rate_ = 0;  // of the window before
};

}  // namespace example
