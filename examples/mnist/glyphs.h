// The shapes that people write for each digit, as pen strokes.
#pragma once
#include <vector>

namespace mnist {

// x to the right and y down, about 0 … 1 each. Strokes are smooth curves through their points; a
// point given twice is a corner.
struct Point {
  float x, y;
  bool operator==(const Point&) const = default;
};
using Stroke = std::vector<Point>;

struct Glyph {
  int digit;
  float share;  // how often among this digit's shapes; they need not sum to 1
  float width;  // of the written shape, its height being 1
  std::vector<Stroke> strokes;
};

const std::vector<Glyph>& glyphs();

}  // namespace mnist
