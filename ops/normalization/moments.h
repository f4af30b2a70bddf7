// Internal: not in <ebb/ebb.h>, not installed.
// How batch_norm's CPU twin goes over the planes of [samples, channels, plane], and each channel's
// mean and Σ (x − mean)²: of parts first, which then move to the common mean.
#pragma once
#include <algorithm>

#include "ebb/ops/normalization/batch_norm.h"
#include "ebb/ops/short_rows.h"
#include "ebb/ops/sums.h"

namespace ebb::cpu {

inline std::int64_t grain(std::int64_t plane) { return 16384 / (plane + 8); }

// Calls f(plane index, channel) for every plane, on all threads.
template <class F>
void for_planes(const Planes& s, F f) {
  parallel_for(s.samples * s.channels, grain(s.plane), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) f(p, p % s.channels);
  });
}

// Of each channel.
struct Moments {
  Array<double> mean;
  Array<double> square;  // Σ (x − mean)²
};

// The same of its parts, [parts, channels]: the planes, or up to 64 rows of [N,C].
struct Parts : Moments {
  std::int64_t channels;
  Array<double> counts;

  Parts(std::int64_t parts, std::int64_t channels) : channels(channels) {
    mean = square = Array<double>::Zero(parts * channels);
    counts.resize(parts);
  }

  // Parts add up in order; squares move to the common mean, which nothing is subtracted for that
  // is much larger than the result.
  Moments total(double count) const {
    Moments all{Array<double>::Zero(channels), Array<double>::Zero(channels)};
    const auto part = [&](const Array<double>& v, std::int64_t p) {
      return v.segment(p * channels, channels);
    };
    for (std::int64_t p = 0; p < counts.size(); ++p)
      all.mean += part(mean, p) * (counts[p] / count);
    for (std::int64_t p = 0; p < counts.size(); ++p)
      all.square += part(square, p) + counts[p] * (part(mean, p) - all.mean).square();
    return all;
  }
};

// Of the columns of rows; mean and square begin as 0, `near` has room for what is subtracted: the
// mean as a T. What that leaves of it counts afterwards.
template <class T>
void column_moments(const T* x, std::int64_t rows, std::int64_t columns, Wide<T>* near,
                    double* mean, double* square) {
  const auto n = static_cast<double>(rows);
  add_rows(0, rows, columns, mean, [=](auto r, auto c) { return wide(x[r * columns + c]); });
  array(mean, columns) /= n;
  array(near, columns) = array(mean, columns).template cast<Wide<T>>();
  add_rows(0, rows, columns, square, [=](auto r, auto c) {
    const Wide<T> d = wide(x[r * columns + c]) - near[c];
    return d * d;
  });
  array(square, columns) -=
      n * (array(mean, columns) - array(near, columns).template cast<double>()).square();
}

// A part is some rows of [N,C].
template <class T>
Parts row_moments(const T* x, std::int64_t rows, std::int64_t channels) {
  constexpr std::int64_t part_rows = 64;
  Parts parts((rows + part_rows - 1) / part_rows, channels);
  parallel_for(parts.counts.size(), grain(part_rows * channels),
               [&](std::int64_t begin, std::int64_t end) {
                 Array<Wide<T>> near(channels);
                 for (std::int64_t p = begin; p < end; ++p) {
                   const std::int64_t first = p * part_rows, n = std::min(part_rows, rows - first);
                   column_moments(x + first * channels, n, channels, near.data(),
                                  &parts.mean[p * channels], &parts.square[p * channels]);
                   parts.counts[p] = static_cast<double>(n);
                 }
               });
  return parts;
}

// A part is a plane; small ones are columns, side by side.
template <class T>
Parts plane_moments(const T* x, const Planes& s) {
  Parts parts(s.samples, s.channels);
  const auto n = static_cast<double>(s.plane);
  parts.counts = n;
  double *means = parts.mean.data(), *squares = parts.square.data();
  const View planes{s.samples * s.channels, s.plane, 1};
  if (are_short_rows<T>(planes)) {
    const auto f = [=](auto first, auto count, const View& v, const Wide<T>* x, Wide<T>*) {
      Wide<T> near[near_elements<T>];
      double mean[near_elements<T>] = {}, square[near_elements<T>] = {};
      column_moments(x, v.n, v.inner, near, mean, square);
      std::copy_n(mean, count, means + first);
      std::copy_n(square, count, squares + first);
    };
    for_short_rows(planes, f, static_cast<T*>(nullptr), 0, x);
    return parts;
  }
  for_planes(s, [=](std::int64_t p, std::int64_t) {
    const T* v = x + p * s.plane;
    const double mean = row_sum(v, s.plane) / n;
    const auto near = static_cast<Wide<T>>(mean);
    const double off = mean - static_cast<double>(near);
    const auto square = [m = Simd<Wide<T>>(near)](auto x) { return (x - m) * (x - m); };
    means[p] = mean;
    squares[p] = sum_row<T>(s.plane, square, v) - n * off * off;
  });
  return parts;
}

template <class T>
Moments channel_moments(const T* x, const Planes& s) {
  const auto parts = s.plane == 1 ? row_moments(x, s.samples, s.channels) : plane_moments(x, s);
  return parts.total(static_cast<double>(s.count()));
}

}  // namespace ebb::cpu
