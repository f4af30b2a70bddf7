#include "ebb/nn/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ebb/core/error.h"

namespace ebb::nn {
namespace {

void check_rate(const char* schedule, const char* what, double rate, bool may_be_zero = false) {
  require(std::isfinite(rate) && (rate > 0 || (may_be_zero && rate == 0)), Kind::value, schedule,
          text("bad ", what), rate, "a positive number");
}

void check_steps(const char* schedule, std::int64_t steps) {
  require(steps >= 1, Kind::value, schedule, "bad number of steps", steps, "1 or more");
}

// `from` at 0, `to` at 1, along half a cosine; held outside.
double anneal(double from, double to, double fraction) {
  const double t = std::clamp(fraction, 0.0, 1.0);
  return to + (from - to) * (1 + std::cos(std::numbers::pi * t)) / 2;
}

}  // namespace

Schedule constant(double rate) {
  check_rate("constant", "rate", rate);
  return [=](std::int64_t) { return rate; };
}

Schedule cosine(CosineOptions o) {
  check_rate("cosine", "peak", o.peak);
  check_rate("cosine", "last", o.last, true);
  check_steps("cosine", o.steps);
  return [=](std::int64_t step) {
    return anneal(o.peak, o.last, static_cast<double>(step) / static_cast<double>(o.steps));
  };
}

Schedule one_cycle(OneCycleOptions o) {
  check_rate("one_cycle", "peak", o.peak);
  check_rate("one_cycle", "start_divisor", o.start_divisor);
  check_rate("one_cycle", "last_divisor", o.last_divisor);
  check_steps("one_cycle", o.steps);
  require(0 < o.rise && o.rise < 1, Kind::value, "one_cycle", "bad rise", o.rise, "(0, 1)");
  const double start = o.peak / o.start_divisor;
  const double top = std::max(1.0, o.rise * static_cast<double>(o.steps) - 1);  // the peak's step
  const double down = std::max(1.0, static_cast<double>(o.steps) - 1 - top);
  return [=](std::int64_t step) {
    const auto s = static_cast<double>(step);
    if (s <= top) return anneal(start, o.peak, s / top);
    return anneal(o.peak, start / o.last_divisor, (s - top) / down);
  };
}

Schedule warm_up(std::int64_t steps, Schedule after) {
  check_steps("warm_up", steps);
  return [=](std::int64_t step) {
    if (step >= steps) return after(step - steps);
    return after(0) * static_cast<double>(step + 1) / static_cast<double>(steps);
  };
}

Tensor tabulate(const Schedule& rate, std::int64_t steps, Device device) {
  check_steps("tabulate", steps);
  std::vector<double> rates;
  for (std::int64_t step = 0; step < steps; ++step) rates.push_back(rate(step));
  return tensor(rates, {steps}, device);
}

}  // namespace ebb::nn
