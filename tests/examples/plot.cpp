#include "common/plot.h"

#include <cmath>
#include <filesystem>

#include "folder.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;
using namespace example;

TEST_CASE("plot: ticks are round and cover the values") {
  CHECK(ticks(0, 1, 5) == std::vector<double>{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1});
  CHECK(ticks(0, 938, 5) == std::vector<double>{0, 200, 400, 600, 800, 1000});
  for (const auto& [low, high] : std::vector<std::pair<double, double>>{
           {0, 0}, {5, 5}, {-1e-9, 1e-9}, {1e300, 1.1e300}, {0.9, 0.99}, {-3, 1e6}}) {
    const std::vector<double> t = ticks(low, high, 5);
    CHECK(t.size() >= 2);
    CHECK(t.size() <= 12);
    CHECK(t.front() <= low + 1e-6 * std::abs(low));
    CHECK(t.back() >= high - 1e-6 * std::abs(high));
  }
}

TEST_CASE("plot: a curve is drawn where its values are, with gaps where they are not finite") {
  const Picture flat = draw({{"t", "x", {{"c", blue, {0, 1, 2, 3}, {0, 0, NAN, 1}, false}}}});
  const auto blues = [&](int row) {
    int count = 0;
    for (int x = 0; x < flat.width; ++x) {
      const auto* p = &flat.rgb[(static_cast<size_t>(row) * static_cast<size_t>(flat.width) +
                                 static_cast<size_t>(x)) *
                                3];
      count += p[0] == blue.r && p[1] == blue.g && p[2] == blue.b;
    }
    return count;
  };
  CHECK(blues(flat.height - 66) > 200);  // y = 0 from x = 0 to 1
  CHECK(blues(flat.height / 2) == 0);    // the gap
}

TEST_CASE("plot: a heat map is as dark as its values, and has its labels where they fit") {
  const auto inked = [](const Picture& picture) {
    std::int64_t count = 0;
    for (size_t i = 0; i < picture.rgb.size(); i += 3) count += picture.rgb[i] == 50;
    return count;
  };
  const auto blues = [](const Picture& picture) {
    std::int64_t count = 0;
    for (size_t i = 0; i < picture.rgb.size(); i += 3)
      count += picture.rgb[i] == blue.r && picture.rgb[i + 1] == blue.g;
    return count;
  };
  const HeatMap two{"head 1", {"a", "b"}, {1, 0, 0.5f, 0.5f}};
  CHECK(blues(draw({two}, "")) == 24 * 24);  // one cell of four
  CHECK(blues(draw({two, two, two}, "")) == 3 * 24 * 24);
  HeatMap blank = two;
  blank.labels = {" ", " "};
  CHECK(inked(draw({two}, "")) > inked(draw({blank}, "")));
  HeatMap large{"", std::vector<std::string>(600, "a"), std::vector<float>(600 * 600, 0.0f)};
  HeatMap unlabelled = large;
  unlabelled.labels.assign(600, " ");
  CHECK(inked(draw({large}, "")) == inked(draw({unlabelled}, "")));
}

TEST_CASE("plot: curves.png is a PNG, also of no and of one point") {
  const Folder temporary;
  const auto path = temporary.path / "curves.png";
  Curve train{"train", blue, {}, {}, false};
  Curve test{"test", orange, {}, {}, true};
  write_curves(path, {{"loss", "step", {train, test}}});
  CHECK(read(path).starts_with("\x89PNG\r\n\x1a\n"));
  train.x = {1};
  train.y = {2};
  write_curves(path, {{"loss", "step", {train, test}}});
  for (int i = 0; i < 2800; ++i) {
    train.x.push_back(i);
    train.y.push_back(2.3 * std::exp(-i / 300.0) + 0.04 * (1 + std::sin(i * 12.9898)));
  }
  write_curves(path, {{"loss", "step", {train, test}}, {"accuracy", "step", {train, test}}});
  CHECK(std::filesystem::file_size(path) > 1000);
  check_error(Kind::io, {"curves.png"},
              [&] { write_curves(temporary.path / "gone" / "curves.png", {}); });
}
