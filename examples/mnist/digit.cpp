// Finding the digit in a picture: dark_on_light() and find_digit() of image.h.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "ebb/core/error.h"
#include "mnist/image.h"

namespace mnist {

using ebb::Kind;
using ebb::require;
using ebb::text;

namespace {

void check(const Gray& picture) {
  const std::size_t size =
      static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height);
  require(picture.width > 0 && picture.height > 0 && picture.values.size() == size, Kind::shape,
          "image", "a gray picture needs width x height values", picture.values.size(), size);
  const bool finite = std::all_of(picture.values.begin(), picture.values.end(),
                                  [](float v) { return std::isfinite(v); });
  require(finite, Kind::value, "image", "the picture must be finite", "NaN or infinity", "");
}

// Large photographs are reduced: nothing is lost at 20×20, and noise averages out.
Gray reduce(const Gray& in) {
  constexpr int longest = 200;
  const int step = (std::max(in.width, in.height) + longest - 1) / longest;
  if (step == 1) return in;
  Gray out{(in.width + step - 1) / step, (in.height + step - 1) / step, {}};
  out.values.resize(static_cast<std::size_t>(out.width * out.height));
  for (int y = 0; y < out.height; ++y)
    for (int x = 0; x < out.width; ++x) {
      float sum = 0;
      int count = 0;
      for (int v = y * step; v < std::min(in.height, (y + 1) * step); ++v)
        for (int u = x * step; u < std::min(in.width, (x + 1) * step); ++u, ++count)
          sum += in.at(u, v);
      out.at(x, y) = sum / static_cast<float>(count);
    }
  return out;
}

struct Plane {
  double level, across, down;  // at x, y from −1 to 1
};

double along(int i, int n) { return n > 1 ? 2.0 * i / (n - 1) - 1 : 0; }

// The plane through the medians of the four sides' border strips: ink that touches the border,
// being the smaller part of a strip, does not bend it.
Plane border_plane(const Gray& in) {
  const int thick = std::max(1, std::min(in.width, in.height) / 16);
  const auto median = [&](int x0, int y0, int x1, int y1) {
    std::vector<float> strip;
    for (int y = y0; y < y1; ++y)
      for (int x = x0; x < x1; ++x) strip.push_back(in.at(x, y));
    const auto middle = strip.begin() + static_cast<std::ptrdiff_t>(strip.size() / 2);
    std::nth_element(strip.begin(), middle, strip.end());
    return double{*middle};
  };
  const double left = median(0, 0, thick, in.height);
  const double right = median(in.width - thick, 0, in.width, in.height);
  const double top = median(0, 0, in.width, thick);
  const double bottom = median(0, in.height - thick, in.width, in.height);
  return {(left + right + top + bottom) / 4, (right - left) / 2, (bottom - top) / 2};
}

// The least (or largest) value within `reach` pixels along the rows, then along the columns.
template <class Better>
Gray extreme(const Gray& in, int reach, Better better) {
  Gray rows = in, out = in;
  for (int y = 0; y < in.height; ++y)
    for (int x = 0; x < in.width; ++x)
      for (int u = std::max(0, x - reach); u <= std::min(in.width - 1, x + reach); ++u)
        rows.at(x, y) = better(rows.at(x, y), in.at(u, y));
  out = rows;
  for (int y = 0; y < in.height; ++y)
    for (int x = 0; x < in.width; ++x)
      for (int v = std::max(0, y - reach); v <= std::min(in.height - 1, y + reach); ++v)
        out.at(x, y) = better(out.at(x, y), rows.at(x, v));
  return out;
}

// What is brighter than anything as wide as a sixth of the picture: a stroke stays, the light's
// slow changes and the edges of shadows go (a top-hat transform).
Gray stand_out(const Gray& in) {
  const auto less = [](float a, float b) { return std::min(a, b); };
  const auto more = [](float a, float b) { return std::max(a, b); };
  const int reach = std::max(2, std::max(in.width, in.height) / 8);
  const Gray ground = extreme(extreme(in, reach, less), reach, more);
  Gray out = in;
  for (std::size_t i = 0; i < out.values.size(); ++i) out.values[i] -= ground.values[i];
  return out;
}

struct Classes {
  float threshold, dark, light;  // and the means of the two classes
};

// Otsu's threshold: the one that parts the values into the two most distinct classes.
Classes otsu(const Gray& in) {
  constexpr int bins = 256;
  const float largest = *std::max_element(in.values.begin(), in.values.end());
  std::array<double, bins> count{};
  for (const float v : in.values)
    ++count[static_cast<std::size_t>(
        std::clamp(largest > 0 ? v / largest * (bins - 1) : 0.f, 0.f, bins - 1.f))];
  double total = 0, weighted = 0;
  for (std::size_t b = 0; b < bins; ++b) {
    total += count[b];
    weighted += count[b] * static_cast<double>(b);
  }
  double below = 0, below_weighted = 0, best = -1;
  Classes split{0, 0, 0};
  for (std::size_t b = 0; b + 1 < bins; ++b) {
    below += count[b];
    below_weighted += count[b] * static_cast<double>(b);
    if (below == 0 || below == total) continue;
    const double dark = below_weighted / below;
    const double light = (weighted - below_weighted) / (total - below);
    const double between = below * (total - below) * (light - dark) * (light - dark);
    if (between <= best) continue;
    best = between;
    const double unit = largest / (bins - 1.0);
    split = {static_cast<float>((static_cast<double>(b) + 1) * unit),
             static_cast<float>(dark * unit), static_cast<float>(light * unit)};
  }
  return split;
}

// How far the ink itself stands out: the mean of what is above the threshold, each value counting
// by its own size, so that a shadow's faint edge among it weighs little.
float ink_level(const Gray& ink, float threshold) {
  double sum = 0, squares = 0;
  for (const float v : ink.values) {
    if (!(v > threshold)) continue;
    sum += v;
    squares += double{v} * v;
  }
  return static_cast<float>(squares / sum);
}

// Clears every connected piece above the threshold that is smaller than a twentieth of the largest.
void drop_specks(Gray& ink, float threshold) {
  std::vector<int> piece(ink.values.size(), -1);
  std::vector<std::size_t> sizes, stack;
  for (std::size_t start = 0; start < piece.size(); ++start) {
    if (piece[start] >= 0 || !(ink.values[start] > threshold)) continue;
    const int id = static_cast<int>(sizes.size());
    sizes.push_back(0);
    stack.assign(1, start);
    piece[start] = id;
    while (!stack.empty()) {
      const int at = static_cast<int>(stack.back());
      stack.pop_back();
      ++sizes.back();
      const int x = at % ink.width, y = at / ink.width;
      for (int v = std::max(0, y - 1); v <= std::min(ink.height - 1, y + 1); ++v)
        for (int u = std::max(0, x - 1); u <= std::min(ink.width - 1, x + 1); ++u) {
          const auto next = static_cast<std::size_t>(v * ink.width + u);
          if (piece[next] >= 0 || !(ink.values[next] > threshold)) continue;
          piece[next] = id;
          stack.push_back(next);
        }
    }
  }
  if (sizes.empty()) return;
  const std::size_t largest = *std::max_element(sizes.begin(), sizes.end());
  for (std::size_t i = 0; i < piece.size(); ++i)
    if (piece[i] >= 0 && sizes[static_cast<std::size_t>(piece[i])] * 20 < largest)
      ink.values[i] = 0;
}

}  // namespace

bool dark_on_light(const Gray& picture) {
  check(picture);
  const Gray in = reduce(picture);
  const Plane ground = border_plane(in);
  double skew = 0;
  for (int y = 0; y < in.height; ++y)
    for (int x = 0; x < in.width; ++x) {
      const double out = in.at(x, y) - ground.level - ground.across * along(x, in.width) -
                         ground.down * along(y, in.height);
      skew += out * out * out;
    }
  return skew < 0;
}

std::array<float, area> find_digit(const Gray& picture) {
  check(picture);
  const auto [low, high] = std::minmax_element(picture.values.begin(), picture.values.end());
  // What counts as noise depends on the range; weights that sum to 1 may round a little above it.
  require(*low >= -1e-3f && *high <= 1 + 1e-3f, Kind::value, "image",
          "gray values lie outside their range", text(*low, " to ", *high), "0 to 1");
  const Gray small = reduce(picture);
  Gray ink = stand_out(small);
  const Classes split = otsu(ink);
  const float contrast = split.light - split.dark;
  // Paper and sensor noise have a contrast of a few hundredths of the full range.
  constexpr float least_contrast = 0.06f;
  require(contrast >= least_contrast, Kind::value, "image", "no digit to be seen",
          text("values from ", *low, " to ", *high, ", ink stands out by ", contrast),
          text("ink that stands out by at least ", least_contrast));
  // A large shadow's edge may have been counted as ink; each round leaves more of it out.
  float level = split.light, threshold = split.threshold;
  for (int round = 0; round < 3; ++round) {
    level = ink_level(ink, threshold);
    threshold = std::max(threshold, level / 2);
  }
  drop_specks(ink, threshold);
  const Box box = ink_box(ink, threshold);
  // Ground to 0 and ink to 1, with the soft edges in between kept.
  const float floor = std::max(split.dark, threshold / 4);
  for (float& v : ink.values) v = std::clamp((v - floor) / (level - floor), 0.f, 1.f);
  return frame(ink, box);
}

}  // namespace mnist
