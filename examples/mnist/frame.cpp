#include "mnist/frame.h"

#include <algorithm>
#include <cstddef>

#include "ebb/core/error.h"

namespace mnist {

namespace {

constexpr int inner = 20;

// Row sums of a box filter: output i is the mean of input [i · step, (i + 1) · step).
struct Tap {
  int first;
  std::vector<float> weights;  // sum to 1
};

std::vector<Tap> taps(int from, int to) {
  std::vector<Tap> all(static_cast<std::size_t>(to));
  for (int i = 0; i < to; ++i) {
    // In units of 1/to of an input pixel, so that the bounds are exact.
    const long begin = long{i} * from, end = begin + from;
    Tap& tap = all[static_cast<std::size_t>(i)];
    tap.first = static_cast<int>(begin / to);
    for (long pixel = tap.first; pixel * to < end; ++pixel) {
      const long overlap = std::min(end, (pixel + 1) * to) - std::max(begin, pixel * to);
      tap.weights.push_back(static_cast<float>(overlap) / static_cast<float>(from));
    }
  }
  return all;
}

Gray resize(const Gray& in, const Box& box, int width, int height) {
  const std::vector<Tap> across = taps(box.x1 - box.x0, width);
  const std::vector<Tap> down = taps(box.y1 - box.y0, height);
  Gray out{width, height, std::vector<float>(static_cast<std::size_t>(width * height))};
  std::vector<float> row(static_cast<std::size_t>(width));
  for (int y = 0; y < height; ++y) {
    const Tap& rows = down[static_cast<std::size_t>(y)];
    for (std::size_t r = 0; r < rows.weights.size(); ++r) {
      const int from_y = box.y0 + rows.first + static_cast<int>(r);
      for (int x = 0; x < width; ++x) {
        const Tap& columns = across[static_cast<std::size_t>(x)];
        float sum = 0;
        for (std::size_t c = 0; c < columns.weights.size(); ++c)
          sum += columns.weights[c] * in.at(box.x0 + columns.first + static_cast<int>(c), from_y);
        out.at(x, y) += rows.weights[r] * sum;
      }
    }
  }
  return out;
}

// Where `size` pixels whose centre of mass is at `centre` begin within 28, none cut off.
int begin(double centre, int size) {
  const int wanted = static_cast<int>(side / 2.0 - centre + 1000.5) - 1000;  // rounded
  return std::clamp(wanted, 0, side - size);
}

}  // namespace

Box ink_box(const Gray& ink, float threshold) {
  Box box{ink.width, ink.height, 0, 0};
  for (int y = 0; y < ink.height; ++y)
    for (int x = 0; x < ink.width; ++x)
      if (ink.at(x, y) > threshold)
        box = {std::min(box.x0, x), std::min(box.y0, y), std::max(box.x1, x + 1),
               std::max(box.y1, y + 1)};
  return box;
}

std::array<float, area> frame(const Gray& ink, const Box& box) {
  ebb::require(!box.empty(), ebb::Kind::value, "mnist", "no ink to place in 28x28", "an empty box",
               "");
  const int wide = box.x1 - box.x0, high = box.y1 - box.y0, longest = std::max(wide, high);
  const auto scaled = [&](int n) { return std::max(1, (2 * n * inner + longest) / (2 * longest)); };
  const Gray small = resize(ink, box, scaled(wide), scaled(high));
  double mass = 0, mass_x = 0, mass_y = 0;
  for (int y = 0; y < small.height; ++y)
    for (int x = 0; x < small.width; ++x) {
      const double m = small.at(x, y);
      mass += m;
      mass_x += m * (x + 0.5);
      mass_y += m * (y + 0.5);
    }
  const bool some = mass > 0;
  const int left = begin(some ? mass_x / mass : small.width / 2.0, small.width);
  const int top = begin(some ? mass_y / mass : small.height / 2.0, small.height);
  std::array<float, area> out{};
  for (int y = 0; y < small.height; ++y)
    for (int x = 0; x < small.width; ++x)
      out[static_cast<std::size_t>((top + y) * side + left + x)] =
          std::clamp(small.at(x, y), 0.0f, 1.0f);
  return out;
}

}  // namespace mnist
