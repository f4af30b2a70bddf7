// curves.png: panels side by side, each with its curves against the same x.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace example {

struct Color {
  std::uint8_t r, g, b;
};
inline constexpr Color blue{31, 111, 180};
inline constexpr Color orange{230, 120, 20};

// Points that are not finite are gaps. `dots` marks each point, for curves of few.
struct Curve {
  std::string name;
  Color color;
  std::vector<double> x;
  std::vector<double> y;
  bool dots = false;
};

struct Panel {
  std::string title;
  std::string x_label;
  std::vector<Curve> curves;
};

// Round numbers that cover [low, high] in about `count` equal parts.
std::vector<double> ticks(double low, double high, int count);

// 8-bit RGB, row-major; `width` is a multiple of the number of panels.
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
};
Picture draw(const std::vector<Panel>& panels, int width = 1200, int height = 450);

// Numbers of 0 … 1 as a square of shades, row-major, with a label beside each row and above each
// column.
struct HeatMap {
  std::string title;
  std::vector<std::string> labels;  // n of them, a character each, for n × n values
  std::vector<float> values;
};
// Side by side, the caption below.
Picture draw(const std::vector<HeatMap>& maps, const std::string& caption);

// Error `io`.
void write_heat_maps(const std::filesystem::path& path, const std::vector<HeatMap>& maps,
                     const std::string& caption);
void write_curves(const std::filesystem::path& path, const std::vector<Panel>& panels);

}  // namespace example
