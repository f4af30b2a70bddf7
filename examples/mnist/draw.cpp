#include "mnist/draw.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "ebb/core/error.h"
#include "ebb/core/parallel.h"
#include "ebb/core/random.h"
#include "mnist/frame.h"
#include "mnist/glyphs.h"

namespace mnist {

namespace {

// One digit's own numbers: Philox with the seed as its key and the digit's index in its counter.
class Dice {
 public:
  Dice(std::uint64_t seed, std::uint64_t index) : seed_(seed), index_(index) {}

  // [0, 1)
  float uniform() {
    if (used_ == 4) {
      block_ = ebb::philox(seed_, block_count_++, index_);
      used_ = 0;
    }
    return ebb::unit_float(block_.v[used_++]);
  }
  float between(float low, float high) { return low + (high - low) * uniform(); }
  // Mean 0, deviation 1, nearly normal, never beyond 3.5: a sum of four, which needs no logarithm.
  float bell() {
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += uniform();
    return (sum - 2) * 1.7320508f;
  }

 private:
  std::uint64_t seed_, index_, block_count_ = 0;
  ebb::Philox block_{};
  int used_ = 4;
};

// How this writer's hand differs from the glyph's table. Lengths in units of the glyph's height.
struct Hand {
  float jitter, wobble_x[3], wobble_y[3], stretch, slant, turn, pen;

  Hand(Dice& dice, int digit) {
    jitter = dice.between(.015f, .05f);
    for (float& w : wobble_x) w = .12f * dice.bell();
    for (float& w : wobble_y) w = .10f * dice.bell();
    stretch = std::clamp(1.05f + .27f * dice.bell(), .55f, 2.f);
    slant = .18f + .25f * dice.bell();
    if (digit == 1) slant = .2f + .3f * dice.bell();
    turn = .07f * dice.bell();
    const float u = dice.uniform();
    pen = 1.5f + 2.5f * u * (.5f + .5f * u) + .3f * dice.bell();  // pixels of the 20
    if (digit == 1) pen += 1.2f * u * u * u;
    pen = std::max(pen, 1.2f);
  }
};

using Line = std::vector<Point>;

const Glyph& choose(Dice& dice, int digit) {
  float total = 0;
  for (const Glyph& glyph : glyphs())
    if (glyph.digit == digit) total += glyph.share;
  float left = dice.uniform() * total;
  const Glyph* last = nullptr;
  for (const Glyph& glyph : glyphs()) {
    if (glyph.digit != digit) continue;
    last = &glyph;
    left -= glyph.share;
    if (left < 0) break;
  }
  return *last;
}

// A Catmull-Rom curve through the points, each moved a little.
Line trace(const Stroke& stroke, float width, const Hand& hand, Dice& dice) {
  Line points;
  for (std::size_t i = 0; i < stroke.size(); ++i) {
    if (i > 0 && stroke[i] == stroke[i - 1]) {
      points.push_back(points.back());
      continue;
    }
    points.push_back({(stroke[i].x - .5f) * width + hand.jitter * dice.bell(),
                      stroke[i].y - .5f + hand.jitter * dice.bell()});
  }
  constexpr int steps = 4;
  Line line;
  const std::size_t last = points.size() - 1;
  for (std::size_t i = 0; i < last; ++i) {
    const Point a = points[i > 0 ? i - 1 : 0], b = points[i], c = points[i + 1],
                d = points[std::min(i + 2, last)];
    const auto curve = [](float a, float b, float c, float d, float t) {
      return b + .5f * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
    };
    for (int s = i == 0 ? 0 : 1; s <= steps; ++s) {
      const float t = static_cast<float>(s) / steps;
      line.push_back({curve(a.x, b.x, c.x, d.x, t), curve(a.y, b.y, c.y, d.y, t)});
    }
  }
  return line;
}

// A smooth warp of the plane, then stretch, slant and turn.
Point move(Point p, const Hand& hand) {
  const auto& wx = hand.wobble_x;
  const auto& wy = hand.wobble_y;
  float x = p.x + 2 * wx[0] * p.x * p.y + 2 * wx[1] * p.y * p.y + 2 * wx[2] * p.x * p.x;
  const float y = p.y + 2 * wy[0] * p.x * p.y + 2 * wy[1] * p.y * p.y + 2 * wy[2] * p.x * p.x;
  x = hand.stretch * x - hand.slant * y;
  // The turn by its half angle's tangent: a rotation without sine and cosine.
  const float t = hand.turn / 2, norm = 1 / (1 + t * t);
  const float cosine = (1 - t * t) * norm, sine = 2 * t * norm;
  return {cosine * x - sine * y, sine * x + cosine * y};
}

// The pen's mark between two dots: full within the radius, fading over one pixel at the edge.
void mark(Gray& ink, Point a, Point b, float radius) {
  const float reach = radius + .5f, full = (radius - .5f) * (radius - .5f);
  const int x0 = std::max(0, static_cast<int>(std::min(a.x, b.x) - reach));
  const int y0 = std::max(0, static_cast<int>(std::min(a.y, b.y) - reach));
  const int x1 = std::min(ink.width - 1, static_cast<int>(std::max(a.x, b.x) + reach));
  const int y1 = std::min(ink.height - 1, static_cast<int>(std::max(a.y, b.y) + reach));
  const float dx = b.x - a.x, dy = b.y - a.y, square = dx * dx + dy * dy;
  const float inverse = square > 0 ? 1 / square : 0;
  for (int y = y0; y <= y1; ++y)
    for (int x = x0; x <= x1; ++x) {
      const float px = static_cast<float>(x) + .5f - a.x, py = static_cast<float>(y) + .5f - a.y;
      const float t = std::clamp((px * dx + py * dy) * inverse, 0.f, 1.f);
      const float ex = px - t * dx, ey = py - t * dy;
      const float gap = ex * ex + ey * ey;
      if (gap >= reach * reach) continue;
      const float cover = gap <= full ? 1 : reach - std::sqrt(gap);
      ink.at(x, y) = std::max(ink.at(x, y), cover);
    }
}

// The lines scaled to a canvas of three times MNIST's 20 pixels, and drawn.
Gray render(std::vector<Line>& lines, const Hand& hand) {
  constexpr float fine = 3, size = 20 * fine;
  float low_x = 1e9f, low_y = 1e9f, high_x = -1e9f, high_y = -1e9f;
  for (const Line& line : lines)
    for (const Point p : line) {
      low_x = std::min(low_x, p.x);
      low_y = std::min(low_y, p.y);
      high_x = std::max(high_x, p.x);
      high_y = std::max(high_y, p.y);
    }
  const float radius = hand.pen * fine / 2;
  const float scale = (size - 2 * radius) / std::max(high_x - low_x, high_y - low_y);
  Gray ink{62, 62, std::vector<float>(62 * 62)};
  for (Line& line : lines)
    for (std::size_t i = 0; i < line.size(); ++i) {
      line[i] = {(line[i].x - low_x) * scale + radius + 1,
                 (line[i].y - low_y) * scale + radius + 1};
      if (i > 0) mark(ink, line[i - 1], line[i], radius);
    }
  return ink;
}

void draw_one(int digit, Dice dice, std::uint8_t* pixels) {
  const Glyph& glyph = choose(dice, digit);
  const Hand hand(dice, digit);
  std::vector<Line> lines;
  for (const Stroke& stroke : glyph.strokes) {
    lines.push_back(trace(stroke, glyph.width, hand, dice));
    for (Point& p : lines.back()) p = move(p, hand);
  }
  const Gray ink = render(lines, hand);
  const std::array<float, area> placed = frame(ink, ink_box(ink, .5f));
  for (std::size_t i = 0; i < placed.size(); ++i)
    pixels[i] = static_cast<std::uint8_t>(placed[i] * 255 + .5f);
}

}  // namespace

Digits draw(int count, std::uint64_t seed) {
  ebb::require(count >= 0, ebb::Kind::value, "mnist", "the number of digits to draw", count,
               "0 or more");
  const auto n = static_cast<std::size_t>(count);
  Digits digits{count, std::vector<std::uint8_t>(n * area), std::vector<std::uint8_t>(n)};
  ebb::parallel_for(count, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto digit = static_cast<int>(i % classes);
      digits.labels[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(digit);
      draw_one(digit, Dice(seed, static_cast<std::uint64_t>(i)),
               &digits.pixels[static_cast<std::size_t>(i) * area]);
    }
  });
  return digits;
}

}  // namespace mnist
