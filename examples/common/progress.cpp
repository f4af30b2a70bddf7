#include "common/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "common/text.h"

namespace example {
namespace {

bool environment_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0';
}

bool is_terminal(std::FILE* out) {
  const char* term = std::getenv("TERM");
  return isatty(fileno(out)) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

// Asked at each drawing, so that a resized window needs no signal handler.
int columns_of(std::FILE* out) {
  winsize size = {};
  const bool known = ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

std::string percent(double part, int digits) { return formatted("%.*f%%", digits, 100 * part); }

std::string bar(double done, int cells, const Style& style) {
  const double filled = std::clamp(done, 0.0, 1.0) * cells;
  const int whole = static_cast<int>(filled);
  const bool half = whole < cells && filled - whole >= 0.5;
  std::string out = style.color ? "\x1b[32m" : "";
  for (int i = 0; i < whole; ++i) out += style.unicode ? "━" : "=";
  if (half) out += style.unicode ? "╸" : ">";
  if (style.color) out += "\x1b[2;39m";
  for (int i = whole + (half ? 1 : 0); i < cells; ++i) out += style.unicode ? "─" : "-";
  if (style.color) out += "\x1b[0m";
  return out;
}

// The figures after the bar, the most telling first.
std::vector<std::string> figures(const Status& status, const std::string& unit) {
  std::vector<std::string> out = {formatted("loss %#.4g", status.loss)};
  if (!std::isnan(status.accuracy)) out.push_back("accuracy " + percent(status.accuracy, 2));
  if (status.rate > 0) {
    out.push_back(with_commas(status.rate) + " " + unit + "/s");
    out.push_back(clock_text(status.seconds_left) + " left");
  }
  if (status.flops > 0) out.push_back(flops_text(status.flops));
  if (status.utilisation > 0) out.push_back("MFU " + percent(status.utilisation, 1));
  return out;
}

}  // namespace

bool unicode_locale() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (!environment_set(name)) continue;
    std::string value = std::getenv(name);
    std::transform(value.begin(), value.end(), value.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return value.find("utf-8") != value.npos || value.find("utf8") != value.npos;
  }
  return false;
}

std::string with_commas(double count) {
  std::string out = formatted("%.*f", count < 10 ? 1 : 0, std::max(0.0, count));
  const size_t digits = std::min(out.find('.'), out.size());
  for (size_t i = digits; i > 3; i -= 3) out.insert(i - 3, ",");
  return out;
}

std::string flops_text(double flops) {
  const bool tera = flops >= 0.9995e12;
  return formatted("%.3g %sFLOP/s", flops / (tera ? 1e12 : 1e9), tera ? "T" : "G");
}

std::string clock_text(double seconds) {
  if (!(seconds >= 0 && seconds < 360000)) return "-:--";
  const auto whole = static_cast<int>(std::lround(seconds));
  if (whole < 3600) return formatted("%d:%02d", whole / 60, whole % 60);
  return formatted("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string bar_text(const Status& status, const std::string& unit, const Style& style) {
  constexpr int longest = 30;
  constexpr int shortest = 8;
  std::string head = status.stage;
  const std::string share = percent(std::floor(100 * status.done) / 100, 0);
  int left = style.columns - static_cast<int>(head.size());
  if (left < 0) return head.substr(0, static_cast<size_t>(std::max(0, style.columns)));
  left -= static_cast<int>(share.size()) + 1;
  if (left < 0) return head;
  const int reserved = left >= shortest + 1 ? shortest + 1 : 0;
  left -= reserved;
  std::string tail;
  for (const std::string& figure : figures(status, unit)) {
    if (left < static_cast<int>(figure.size()) + 2) break;
    tail += "  " + figure;
    left -= static_cast<int>(figure.size()) + 2;
  }
  std::string out = head;
  if (reserved > 0) out += " " + bar(status.done, std::min(longest, shortest + left), style);
  return out + " " + share + tail;
}

std::string plain_text(const Status& status, const std::string& unit) {
  std::string out = status.stage + "  " + percent(status.done, 1);
  for (const std::string& figure : figures(status, unit)) out += "  " + figure;
  return out;
}

Progress::Progress(std::FILE* out, std::string unit, std::int64_t total, std::int64_t before,
                   std::int64_t interval, Effort effort)
    : out_(out),
      unit_(std::move(unit)),
      total_(total),
      interval_(std::max<std::int64_t>(interval, 1)),
      effort_(effort),
      terminal_(is_terminal(out)),
      mark_time_(Clock::now()),
      mark_done_(before) {}

Progress::~Progress() {
  if (drawn_) write("\n");
}

bool Progress::due() {
  constexpr auto pause = std::chrono::milliseconds(100);
  if (terminal_) return !drawn_ || Clock::now() - shown_ >= pause;
  return calls_++ % interval_ == 0;
}

void Progress::update(const std::string& stage, std::int64_t done, double loss, double accuracy) {
  const auto total = static_cast<double>(std::max<std::int64_t>(total_, 1));
  Status status{stage, static_cast<double>(done) / total, loss, accuracy};
  status.rate = measure_rate(done);
  if (status.rate > 0) status.seconds_left = static_cast<double>(total_ - done) / status.rate;
  status.flops = status.rate * effort_.an_item;
  if (effort_.peak > 0) status.utilisation = status.flops / effort_.peak;
  if (terminal_) {
    Style style{columns_of(out_) - 1, unicode_locale(), !environment_set("NO_COLOR")};
    write("\r" + bar_text(status, unit_, style) + "\x1b[K");
    drawn_ = true;
  } else {
    write(plain_text(status, unit_) + "\n");
  }
  shown_ = Clock::now();
}

// Over windows of some seconds: within one, the new speed takes over from the old little by little.
double Progress::measure_rate(std::int64_t done) {
  constexpr double window = 5;
  const double elapsed = std::chrono::duration<double>(Clock::now() - mark_time_).count();
  const auto moved = static_cast<double>(done - mark_done_);
  if (!(moved > 0 && elapsed > 0)) return rate_;
  const double share = rate_ > 0 ? std::min(1.0, elapsed / window) : 1.0;
  const double rate = share * (moved / elapsed) + (1 - share) * rate_;
  if (elapsed >= window) {
    mark_time_ = Clock::now();
    mark_done_ = done;
    rate_ = rate;
  }
  return rate;
}

void Progress::restart(std::int64_t done) {
  mark_time_ = Clock::now();
  mark_done_ = done;
}

void Progress::line(const std::string& text) {
  write((drawn_ ? "\r\x1b[K" : "") + text + "\n");
  drawn_ = false;
}

// A reader that has gone away is no reason to end a training run: nothing more is shown to it.
void Progress::write(const std::string& text) {
  if (closed_) return;
  const bool written = std::fwrite(text.data(), 1, text.size(), out_) == text.size();
  closed_ = std::fflush(out_) != 0 || !written;
}

}  // namespace example
