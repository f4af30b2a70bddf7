#include "common/plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/font.h"
#include "common/output.h"
#include "common/text.h"
#include "ebb/core/error.h"

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

namespace example {
namespace {

constexpr Color white{255, 255, 255};
constexpr Color ink{50, 50, 55};
constexpr Color faint{226, 228, 232};

// A rectangle of the picture, [left, right) × [top, bottom).
struct Box {
  int left, top, right, bottom;
};

class Canvas {
 public:
  Canvas(int width, int height) : picture_{width, height, {}} {
    picture_.rgb.assign(static_cast<size_t>(width) * static_cast<size_t>(height) * 3, white.r);
  }

  void blend(int x, int y, Color color, double share) {
    if (x < 0 || y < 0 || x >= picture_.width || y >= picture_.height) return;
    std::uint8_t* point =
        &picture_.rgb[(static_cast<size_t>(y) * static_cast<size_t>(picture_.width) +
                       static_cast<size_t>(x)) *
                      3];
    const std::uint8_t channels[] = {color.r, color.g, color.b};
    for (int c = 0; c < 3; ++c)
      point[c] =
          static_cast<std::uint8_t>(std::lround(point[c] + share * (channels[c] - point[c])));
  }

  void fill(Box box, Color color) {
    for (int y = box.top; y < box.bottom; ++y)
      for (int x = box.left; x < box.right; ++x) blend(x, y, color, 1);
  }

  // `x` is the left end; returns the right one.
  int text(const std::string& words, int x, int y, Color color) {
    for (const char character : words) {
      const Glyph rows = glyph(character);
      for (int row = 0; row < glyph_height; ++row)
        for (int column = 0; column < glyph_width; ++column)
          if (rows[static_cast<size_t>(row)] >> (glyph_width - 1 - column) & 1) {
            const int left = x + column * scale;
            const int top = y + row * scale;
            fill({left, top, left + scale, top + scale}, color);
          }
      x += advance;
    }
    return x;
  }

  static int text_width(const std::string& words) {
    return static_cast<int>(words.size()) * advance - scale;
  }
  static constexpr int text_height = 14;  // of what stands on the line

  const Picture& picture() const { return picture_; }

 private:
  static constexpr int scale = 2;
  static constexpr int advance = (glyph_width + 1) * scale;
  Picture picture_;
};

struct Point {
  double x, y;
};

double distance(Point p, Point a, Point b) {
  const Point along{b.x - a.x, b.y - a.y};
  const double length2 = along.x * along.x + along.y * along.y;
  double t = length2 > 0 ? ((p.x - a.x) * along.x + (p.y - a.y) * along.y) / length2 : 0;
  t = std::clamp(t, 0.0, 1.0);
  return std::hypot(p.x - a.x - t * along.x, p.y - a.y - t * along.y);
}

// How much of each pixel of a box one curve covers. Its strokes are united before they are blended,
// so that a curve that crosses itself a thousand times is as dark as one that does not.
class Coverage {
 public:
  explicit Coverage(Box box)
      : box_(box),
        width_(box.right - box.left),
        share_(static_cast<size_t>(width_) * static_cast<size_t>(box.bottom - box.top)) {}

  void stroke(Point a, Point b, double radius) {
    const int reach = static_cast<int>(std::ceil(radius)) + 1;
    const auto [x0, x1] = std::minmax(a.x, b.x);
    const auto [y0, y1] = std::minmax(a.y, b.y);
    for (int y = std::max(box_.top, static_cast<int>(y0) - reach);
         y < std::min(box_.bottom, static_cast<int>(y1) + reach + 1); ++y)
      for (int x = std::max(box_.left, static_cast<int>(x0) - reach);
           x < std::min(box_.right, static_cast<int>(x1) + reach + 1); ++x) {
        double& share = at(x, y);
        const double away = distance({x + 0.5, y + 0.5}, a, b);
        share = std::max(share, std::clamp(radius + 0.5 - away, 0.0, 1.0));
      }
  }

  void paint(Canvas& canvas, Color color) {
    for (int y = box_.top; y < box_.bottom; ++y)
      for (int x = box_.left; x < box_.right; ++x)
        if (at(x, y) > 0) canvas.blend(x, y, color, at(x, y));
  }

 private:
  double& at(int x, int y) {
    return share_[static_cast<size_t>(y - box_.top) * static_cast<size_t>(width_) +
                  static_cast<size_t>(x - box_.left)];
  }
  Box box_;
  int width_;
  std::vector<double> share_;
};

struct Axis {
  std::vector<double> ticks;
  double low = 0, high = 1;

  double share(double value) const { return (value - low) / (high - low); }
};

Axis axis_over(const std::vector<Curve>& curves, std::vector<double> Curve::*values, int count) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const Curve& curve : curves)
    for (const double value : curve.*values)
      if (std::isfinite(value)) {
        low = std::min(low, value);
        high = std::max(high, value);
      }
  if (!(low <= high)) low = 0, high = 1;
  Axis axis;
  axis.ticks = ticks(low, high, count);
  axis.low = axis.ticks.front();
  axis.high = axis.ticks.back();
  return axis;
}

void draw_axes(Canvas& canvas, Box box, const Axis& x_axis, const Axis& y_axis) {
  for (const double tick : y_axis.ticks) {
    const int y = box.bottom - static_cast<int>(y_axis.share(tick) * (box.bottom - box.top));
    canvas.fill({box.left, y, box.right, y + 1}, faint);
    const std::string words = formatted("%.6g", tick);
    canvas.text(words, box.left - 10 - Canvas::text_width(words), y - Canvas::text_height / 2, ink);
  }
  for (const double tick : x_axis.ticks) {
    const int x = box.left + static_cast<int>(x_axis.share(tick) * (box.right - box.left));
    canvas.fill({x, box.top, x + 1, box.bottom}, faint);
    const std::string words = formatted("%.6g", tick);
    canvas.text(words, x - Canvas::text_width(words) / 2, box.bottom + 10, ink);
  }
  canvas.fill({box.left - 1, box.top, box.left + 1, box.bottom + 1}, ink);
  canvas.fill({box.left, box.bottom - 1, box.right, box.bottom + 1}, ink);
}

void draw_curve(Canvas& canvas, Box box, const Axis& x_axis, const Axis& y_axis,
                const Curve& curve) {
  Coverage coverage({box.left - 5, box.top - 5, box.right + 5, box.bottom + 5});
  const size_t n = std::min(curve.x.size(), curve.y.size());
  const auto place = [&](size_t i) {
    return Point{box.left + x_axis.share(curve.x[i]) * (box.right - box.left),
                 box.bottom - y_axis.share(curve.y[i]) * (box.bottom - box.top)};
  };
  const auto shown = [&](size_t i) {
    return i < n && std::isfinite(curve.x[i]) && std::isfinite(curve.y[i]);
  };
  for (size_t i = 0; i < n; ++i) {
    if (!shown(i)) continue;
    const Point here = place(i);
    if (shown(i + 1)) coverage.stroke(here, place(i + 1), 1);
    if (curve.dots || n == 1) coverage.stroke(here, here, 3.5);
  }
  coverage.paint(canvas, curve.color);
}

void draw_panel(Canvas& canvas, Box panel, const Panel& content) {
  const Box box{panel.left + 92, panel.top + 56, panel.right - 40, panel.bottom - 66};
  const Axis x_axis = axis_over(content.curves, &Curve::x, 5);
  const Axis y_axis = axis_over(content.curves, &Curve::y, 6);
  draw_axes(canvas, box, x_axis, y_axis);
  for (const Curve& curve : content.curves) draw_curve(canvas, box, x_axis, y_axis, curve);
  canvas.text(content.title, box.left, panel.top + 22, ink);
  const int middle = (box.left + box.right - Canvas::text_width(content.x_label)) / 2;
  canvas.text(content.x_label, middle, panel.bottom - 30, ink);
  int right = box.right;  // the legend grows to the left
  for (auto curve = content.curves.rbegin(); curve != content.curves.rend(); ++curve) {
    right -= Canvas::text_width(curve->name);
    canvas.text(curve->name, right, panel.top + 22, ink);
    canvas.fill({right - 30, panel.top + 28, right - 8, panel.top + 31}, curve->color);
    right -= 52;
  }
}

constexpr int heat_margin = 36;  // left of a map, for its labels

// White to blue. Labels that do not fit the cells are left out.
void draw_heat_map(Canvas& canvas, int left, int top, int cell, const HeatMap& map) {
  const auto n = static_cast<int>(map.labels.size());
  canvas.fill({left - 1, top - 1, left + n * cell + 1, top + n * cell + 1}, ink);
  canvas.fill({left, top, left + n * cell, top + n * cell}, white);
  for (int i = 0; i < n * cell; ++i)
    for (int j = 0; j < n * cell; ++j) {
      const double value = map.values.at(static_cast<size_t>(i / cell * n + j / cell));
      canvas.blend(left + j, top + i, blue, std::clamp(value, 0.0, 1.0));
    }
  canvas.text(map.title, left, top - 2 * Canvas::text_height - 20, ink);
  if (cell < Canvas::text_height + 2) return;
  for (int i = 0; i < n; ++i) {
    const std::string& label = map.labels[static_cast<size_t>(i)];
    const int width = Canvas::text_width(label);
    canvas.text(label, left + i * cell + (cell - width) / 2, top - Canvas::text_height - 6, ink);
    const int line = top + i * cell + (cell - Canvas::text_height) / 2;
    canvas.text(label, left - width - 8, line, ink);
  }
}

void write_picture(const std::filesystem::path& path, const Picture& picture) {
  std::string png;
  const auto append = [](void* to, void* bytes, int n) {
    static_cast<std::string*>(to)->append(static_cast<const char*>(bytes), static_cast<size_t>(n));
  };
  const int done = stbi_write_png_to_func(append, &png, picture.width, picture.height, 3,
                                          picture.rgb.data(), picture.width * 3);
  ebb::require(done != 0, ebb::Kind::oom, "plot", "cannot encode the picture", "", "more memory");
  write_file(path, png);
}

}  // namespace

std::vector<double> ticks(double low, double high, int count) {
  if (!(high - low > 1e-12 * std::max(std::abs(low), std::abs(high)))) {
    const double margin = low == 0 ? 1 : std::abs(low) / 2;  // one value: put it in the middle
    low -= margin;
    high += margin;
  }
  const double wanted = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(wanted)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.5, 2.0, 1.0})
    if (factor * power >= wanted) step = factor * power;
  const auto first = static_cast<std::int64_t>(std::floor(low / step + 1e-9));
  const auto last = static_cast<std::int64_t>(std::ceil(high / step - 1e-9));
  std::vector<double> out;
  for (std::int64_t i = first; i <= last; ++i) out.push_back(static_cast<double>(i) * step);
  return out;
}

Picture draw(const std::vector<Panel>& panels, int width, int height) {
  Canvas canvas(width, height);
  const int each = width / static_cast<int>(std::max<size_t>(panels.size(), 1));
  int left = 0;
  for (const Panel& panel : panels) {
    draw_panel(canvas, {left, 0, left + each, height}, panel);
    left += each;
  }
  return canvas.picture();
}

Picture draw(const std::vector<HeatMap>& maps, const std::string& caption) {
  constexpr int largest_cell = 24;
  constexpr int largest_map = 480;
  constexpr int head = 2 * Canvas::text_height + 40;
  constexpr int foot = Canvas::text_height + 40;
  const int n = maps.empty() ? 1 : static_cast<int>(maps.front().labels.size());
  const int cell = std::clamp(largest_map / std::max(n, 1), 1, largest_cell);
  const int each = std::max(n * cell, 120) + heat_margin;
  const int width = std::max(static_cast<int>(maps.size()) * each, Canvas::text_width(caption));
  Canvas canvas(width + heat_margin, head + n * cell + foot);
  int left = heat_margin;
  for (const HeatMap& map : maps) {
    draw_heat_map(canvas, left, head, cell, map);
    left += each;
  }
  canvas.text(caption, heat_margin, head + n * cell + 16, ink);
  return canvas.picture();
}

void write_heat_maps(const std::filesystem::path& path, const std::vector<HeatMap>& maps,
                     const std::string& caption) {
  write_picture(path, draw(maps, caption));
}

void write_curves(const std::filesystem::path& path, const std::vector<Panel>& panels) {
  write_picture(path, draw(panels));
}

}  // namespace example
