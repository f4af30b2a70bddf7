// Internal: not in <ebb/ebb.h>, not installed.
// The means that layer_norm's CPU twin subtracts.
#pragma once
#include "ebb/ops/short_rows.h"

namespace ebb::cpu {

// μ as the nearest T and what that leaves of it, so that x − μ is right far from 0.
template <class T>
struct Centre {
  T high = 0;
  T low = 0;
  Centre() = default;
  explicit Centre(double mean) : high(T(mean)), low(T(mean - static_cast<double>(high))) {}
};

// The same of columns.
template <class T>
struct Centres {
  T high[near_elements<T>], low[near_elements<T>];
  Centres(const double* mean, std::int64_t n) {
    for (std::int64_t c = 0; c < n; ++c) high[c] = T(mean[c]);
    for (std::int64_t c = 0; c < n; ++c) low[c] = T(mean[c] - static_cast<double>(high[c]));
  }
};

}  // namespace ebb::cpu
