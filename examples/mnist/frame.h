// Placing ink as MNIST did: the ink's box scaled to 20×20 with its aspect kept, every pixel the
// mean over the area it covers, then moved by whole pixels so that the centre of mass comes to the
// centre of 28×28.
// Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
#pragma once
#include <array>
#include <vector>

#include "mnist/data.h"

namespace mnist {

// A gray picture, row by row.
struct Gray {
  int width = 0;
  int height = 0;
  std::vector<float> values;

  float at(int x, int y) const { return values[index(x, y)]; }
  float& at(int x, int y) { return values[index(x, y)]; }

 private:
  std::size_t index(int x, int y) const { return static_cast<std::size_t>(y * width + x); }
};

// Half-open: x0 <= x < x1.
struct Box {
  int x0 = 0, y0 = 0, x1 = 0, y1 = 0;
  bool empty() const { return x1 <= x0 || y1 <= y0; }
};

// The smallest box around every value above the threshold.
Box ink_box(const Gray& ink, float threshold);

// Ink 0 … 1 on ground 0 within the box → 28×28 of the same range. The box must not be empty.
std::array<float, area> frame(const Gray& ink, const Box& box);

}  // namespace mnist
