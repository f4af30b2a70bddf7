// Learning rates as functions of the step, counted from 0.
//
//   const Schedule rate = warm_up(100, cosine({.peak = 1e-3, .steps = 5000}));
//   optimizer.step(rate(step));
//
// Errors: `value` for rates that are not finite and positive, steps below 1, fractions outside
// (0, 1).
#pragma once
#include <cstdint>
#include <functional>

#include "ebb/core/tensor.h"

namespace ebb::nn {

using Schedule = std::function<double(std::int64_t step)>;

Schedule constant(double rate);

// From `peak` to `last` along half a cosine; `last` from `steps` on.
struct CosineOptions {
  double peak;
  std::int64_t steps;
  double last = 0;
};
Schedule cosine(CosineOptions options);

// Up from peak / start_divisor to peak in the first `rise` of the steps, then down to
// peak / start_divisor / last_divisor, both along half a cosine. Defaults as PyTorch's OneCycleLR.
// Source: Smith & Topin 2017, arXiv:1708.07120.
struct OneCycleOptions {
  double peak;
  std::int64_t steps;
  double rise = 0.3;
  double start_divisor = 25;
  double last_divisor = 1e4;
};
Schedule one_cycle(OneCycleOptions options);

// (step + 1) / steps of after(0) during the first `steps`, then after(step − steps).
Schedule warm_up(std::int64_t steps, Schedule after);

// The rates of steps 0 … steps − 1 as a table for Optimizer::step(), f64 [steps].
Tensor tabulate(const Schedule& rate, std::int64_t steps, Device device);

}  // namespace ebb::nn
