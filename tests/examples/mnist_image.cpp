// Pictures are written by the tests themselves, byte by byte where no writer would make them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#if __has_include(<stb/stb_image_write.h>)
#include <stb/stb_image_write.h>
#else
#include <stb_image_write.h>
#endif
#pragma GCC diagnostic pop

#include "bytes.h"
#include "ebb/core/error.h"
#include "folder.h"
#include "mnist/draw.h"
#include "mnist/image.h"
#include "mnist/terminal.h"
#include "twins.h"

using namespace mnist;
using namespace mnist::test;
using ebb::Kind;
using ebb::test::check_error;
using ebb::test::Stopwatch;
namespace fs = std::filesystem;

namespace {

// One file in a folder of its own, gone at the end.
struct TemporaryFile {
  ebb::test::Folder folder;
  std::string path;
  explicit TemporaryFile(const Bytes& bytes, const std::string& name = "picture")
      : path(folder.path / name) {
    ebb::test::write(path, text_of(bytes));
  }
};

void append(Bytes& out, const Bytes& more) { out = joined(std::move(out), more); }

Image read(const Bytes& bytes, const std::string& name = "picture") {
  const TemporaryFile file(bytes, name);
  return read_image(file.path);
}

void refuse(Kind kind, const std::string& part, const Bytes& bytes) {
  const TemporaryFile file(bytes);
  check_error(kind, {"image: \"" + file.path, part}, [&] { read_image(file.path); });
}

const Png two_by_two{2, 2, 8, 2, {0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12}};
const Bytes two_by_two_rgb = {1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12};

// 8×8, four components, every coefficient 0: C = M = Y = K = 128.
Bytes cmyk_jpeg(int scans = 1) {
  Bytes out = {0xff, 0xd8, 0xff, 0xee, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100, 0, 0, 0, 0, 0};
  append(out, {0xff, 0xdb, 0, 67, 0});
  append(out, Bytes(64, 1));
  append(out, {0xff, 0xc0, 0, 20, 8, 0, 8, 0, 8, 4});
  for (std::uint8_t c = 1; c <= 4; ++c) append(out, {c, 0x11, 0});
  for (const std::uint8_t table : {0x00, 0x10}) {  // one code of one bit: no difference, end
    append(out, {0xff, 0xc4, 0, 20, table, 1});
    append(out, Bytes(15, 0));
    append(out, {0});
  }
  for (int s = 0; s < scans; ++s) {
    append(out, {0xff, 0xda, 0, 14, 4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0});
    append(out, {0x00});
  }
  append(out, {0xff, 0xd9});
  return out;
}

// Ink 1 on ground 0: a digit drawn large at an offset.
Gray enlarged(const std::uint8_t* digit, int factor, int width, int height, int left, int top) {
  Gray out{width, height, std::vector<float>(static_cast<std::size_t>(width * height))};
  for (int y = 0; y < side * factor; ++y)
    for (int x = 0; x < side * factor; ++x)
      if (left + x >= 0 && left + x < width && top + y >= 0 && top + y < height)
        out.at(left + x, top + y) = static_cast<float>(digit[y / factor * side + x / factor]) / 255;
  return out;
}

std::string shown(const std::array<float, area>& picture) {
  Bytes pixels(area);
  for (std::size_t i = 0; i < area; ++i) pixels[i] = static_cast<std::uint8_t>(picture[i] * 255);
  return show(pixels.data(), false);
}

// 1: the same picture; 0: nothing in common. A pixel's shift is forgiven: where the centre of mass
// lies half-way between two pixels, it may be rounded to either.
double likeness(const std::array<float, area>& a, const std::uint8_t* b) {
  double best = 0;
  for (int dy = -1; dy <= 1; ++dy)
    for (int dx = -1; dx <= 1; ++dx) {
      double ab = 0, aa = 0, bb = 0;
      for (int y = 1; y + 1 < side; ++y)
        for (int x = 1; x + 1 < side; ++x) {
          const double u = a[static_cast<std::size_t>((y + dy) * side + x + dx)];
          const double v = b[y * side + x];
          ab += u * v;
          aa += u * u;
          bb += v * v;
        }
      best = std::max(best, ab / std::sqrt(aa * bb));
    }
  return best;
}

}  // namespace

TEST_CASE("image: PNG of every kind decodes to the right pixels") {
  CHECK(read(two_by_two.bytes()).rgb == two_by_two_rgb);
  CHECK(read(two_by_two.bytes()).width == 2);
  const Png one{1, 1, 8, 0, {0, 77}};
  CHECK(read(one.bytes()).rgb == Bytes{77, 77, 77});
  const Png gray{3, 1, 8, 0, {0, 0, 128, 255}};
  CHECK(read(gray.bytes()).rgb == Bytes{0, 128, 255, 0, 128, 255, 0, 128, 255});
  const Png bits{8, 1, 1, 0, {0, 0b10110010}};
  const Image mono = read(bits.bytes());
  CHECK(Bytes(mono.rgb.begin(), mono.rgb.begin() + 8) == Bytes{255, 0, 255, 255, 0, 0, 255, 0});
  const Png deep{2, 1, 16, 0, {0, 0x12, 0x34, 0xfe, 0xdc}};
  CHECK(read(deep.bytes()).rgb == Bytes{0x12, 0xfe, 0x12, 0xfe, 0x12, 0xfe});
  const Png deep_rgb{1, 1, 16, 2, {0, 1, 0, 2, 0, 3, 0}};
  CHECK(read(deep_rgb.bytes()).rgb == Bytes{1, 2, 3});
  const Png palette{3, 1, 8, 3, {0, 1, 0, 1}, chunk("PLTE", {9, 8, 7, 200, 100, 50})};
  CHECK(read(palette.bytes()).rgb == Bytes{200, 9, 200, 100, 8, 100, 50, 7, 50});
  const Png beyond{4, 1, 8, 3, {0, 1, 2, 255, 0}, chunk("PLTE", {9, 8, 7, 200, 100, 50})};
  CHECK(read(beyond.bytes()).rgb == Bytes{200, 0, 0, 9, 100, 0, 0, 8, 50, 0, 0, 7});
  refuse(Kind::format, "damaged PNG", Png{1, 1, 8, 3, {0, 0}, chunk("PLTE", {9, 8})}.bytes());
  const Png interlaced{2, 2, 8, 2, {0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12}, {}, 1};
  CHECK(read(interlaced.bytes()).rgb == two_by_two_rgb);
}

TEST_CASE("image: what is transparent shows white") {
  const Png alpha{3, 1, 8, 6, {0, 0, 0, 0, 0, 10, 20, 30, 255, 0, 100, 200, 128}};
  CHECK(read(alpha.bytes()).rgb == Bytes{255, 10, 127, 255, 20, 177, 255, 30, 227});
  const Png gray_alpha{2, 1, 8, 4, {0, 0, 0, 60, 255}};
  CHECK(read(gray_alpha.bytes()).rgb == Bytes{255, 60, 255, 60, 255, 60});
}

TEST_CASE("image: JPEG in color, in gray and in CMYK decodes to the right pixels") {
  Bytes jpeg;
  const auto put = [](void* to, void* data, int size) {
    const auto* bytes = static_cast<std::uint8_t*>(data);
    static_cast<Bytes*>(to)->insert(static_cast<Bytes*>(to)->end(), bytes, bytes + size);
  };
  Bytes plain(16 * 16 * 3);
  for (std::size_t i = 0; i < 16 * 16; ++i) plain[3 * i] = 200, plain[3 * i + 1] = 80;
  REQUIRE(stbi_write_jpg_to_func(put, &jpeg, 16, 16, 3, plain.data(), 100) != 0);
  const Image image = read(jpeg, "lying.png");
  REQUIRE(image.rgb.size() == 3 * 256);
  for (std::size_t i = 0; i < 256; ++i) {
    CHECK(std::abs(image.rgb[i] - 200) <= 3);
    CHECK(std::abs(image.rgb[256 + i] - 80) <= 3);
    CHECK(image.rgb[512 + i] <= 3);
  }
  jpeg.clear();
  const Bytes gray(64, 90);
  REQUIRE(stbi_write_jpg_to_func(put, &jpeg, 8, 8, 1, gray.data(), 95) != 0);
  for (const std::uint8_t v : read(jpeg).rgb) CHECK(std::abs(v - 90) <= 2);
  for (const std::uint8_t v : read(cmyk_jpeg()).rgb) CHECK(std::abs(v - 64) <= 1);
}

TEST_CASE("image: the content decides, not the name, and bytes behind a PNG are ignored") {
  CHECK(read(two_by_two.bytes(), "picture.jpg").rgb == two_by_two_rgb);
  Bytes polyglot = two_by_two.bytes();
  append(polyglot, {'P', 'K', 5, 6, 0, 0, 0, 0});
  CHECK(read(polyglot).rgb == two_by_two_rgb);
}

TEST_CASE("image: other formats, text and nothing at all are refused by name") {
  refuse(Kind::format, "an empty file", {});
  refuse(Kind::format, "something else", {'h', 'e', 'l', 'l', 'o'});
  refuse(Kind::format, "GIF", {'G', 'I', 'F', '8', '9', 'a', 1, 0, 1, 0});
  refuse(Kind::format, "BMP", {'B', 'M', 0, 0});
  refuse(Kind::format, "PSD", {'8', 'B', 'P', 'S', 0, 1});
  refuse(Kind::format, "HDR", {'#', '?', 'R', 'A', 'D'});
  refuse(Kind::format, "PIC", {0x53, 0x80, 0xf6, 0x34});
  refuse(Kind::format, "PNM", {'P', '5', ' ', '1'});
  refuse(Kind::format, "something else", Bytes(18, 0));  // TGA has no magic
  check_error(Kind::io, {"image: cannot open", "No such file"}, [] { read_image("gone.png"); });
  check_error(Kind::io, {"directory"}, [] { read_image("/"); });
}

TEST_CASE("image: a PNG cut anywhere, or with any one bit flipped, is refused") {
  const Bytes good = two_by_two.bytes();
  for (std::size_t n = 8; n < good.size(); ++n)
    refuse(Kind::format, "cut short",
           Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)));
  for (std::size_t i = 8; i < good.size(); ++i) {
    Bytes bytes = good;
    bytes[i] ^= 0x10;
    const TemporaryFile file(bytes);
    check_error(Kind::format, {file.path}, [&] { read_image(file.path); });
  }
  Bytes crc = good;
  crc[29] ^= 1;
  refuse(Kind::format, "chunk IHDR at byte 8", crc);
}

TEST_CASE("image: a JPEG that is cut short or damaged is refused or decoded, without a crash") {
  const Bytes good = cmyk_jpeg();
  for (std::size_t n = 3; n + 20 < good.size(); ++n)
    refuse(Kind::format, "damaged JPEG",
           Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)));
  for (std::size_t i = 3; i < good.size(); ++i) {
    Bytes bytes = good;
    bytes[i] ^= 0x41;
    try {
      read(bytes);
    } catch (const ebb::Error& error) {
      CHECK((error.kind() == Kind::format || error.kind() == Kind::limit));
    }
  }
}

TEST_CASE("image: bombs are refused at once, before decoding") {
  const Stopwatch watch;
  refuse(Kind::limit, "100000x100000", Png{100000, 100000, 8, 2, {}}.bytes());
  refuse(Kind::limit, "1x8193", Png{1, 8193, 8, 0, {}}.bytes());
  const std::string huge = "at most 8192 a side";
  Bytes jpeg = cmyk_jpeg();
  const Bytes frame_header = {0xff, 0xc0};
  const auto at = std::search(jpeg.begin(), jpeg.end(), frame_header.begin(), frame_header.end());
  std::fill(at + 5, at + 9, std::uint8_t{0xff});
  refuse(Kind::limit, huge, jpeg);
  refuse(Kind::limit, "too many scans", cmyk_jpeg(1000));
  CHECK(watch.seconds() <= 0.2);
  // Two pixels by their header, 50 MB when unpacked.
  refuse(Kind::limit, "unpacks to more", Png{2, 1, 8, 0, Bytes(50'000'000)}.bytes());
  refuse(Kind::format, "pixels are missing", Png{2, 2, 8, 0, {0, 1, 2}}.bytes());
  refuse(Kind::format, "makes no sense", Png{2, 2, 3, 0, {0, 1, 0, 2}}.bytes());
  refuse(Kind::format, "no pixels", Png{0, 2, 8, 0, {0, 0}}.bytes());
}

TEST_CASE("image: a file above 64 MiB is refused unread") {
  const TemporaryFile file({1});
  fs::resize_file(file.path, (std::uintmax_t{64} << 20) + 1);
  check_error(Kind::limit, {"67108865 bytes"}, [&] { read_image(file.path); });
}

TEST_CASE("digit: found at any size and place, it becomes the picture that was drawn") {
  const Digits digits = draw(20, 11);
  for (std::size_t i = 0; i < 20; ++i) {
    const std::uint8_t* digit = &digits.pixels[i * area];
    for (const int factor : {1, 3, 10, 20}) {
      const Gray picture =
          enlarged(digit, factor, 31 * factor, 40 * factor, 2 * factor, 9 * factor);
      CHECK(likeness(find_digit(picture), digit) >= 0.93);
    }
  }
}

TEST_CASE("digit: uneven light, a shadow's edge and specks do not mislead") {
  const Digits digits = draw(30, 12);
  for (std::size_t i = 0; i < 30; ++i) {
    const std::uint8_t* digit = &digits.pixels[i * area];
    Gray paper = enlarged(digit, 5, 200, 180, 25, 15);
    for (int y = 0; y < 180; ++y)
      for (int x = 0; x < 200; ++x) {
        const float light = .9f - .4f * static_cast<float>(x) / 200 - (y > 170 - x / 4 ? .15f : 0);
        paper.at(x, y) = light * (1 - .7f * paper.at(x, y));
      }
    paper.at(190, 5) = paper.at(3, 170) = 0;
    CHECK(dark_on_light(paper));
    for (float& v : paper.values) v = 1 - v;
    CHECK(!dark_on_light(paper));
    const auto found = find_digit(paper);
    INFO("digit ", i, "\n", shown(found));
    CHECK(likeness(found, digit) >= 0.85);
  }
}

TEST_CASE("digit: MNIST's own pictures are light on dark, their negatives dark on light") {
  const Digits digits = draw(200, 13);
  for (std::size_t i = 0; i < 200; ++i) {
    Gray picture = enlarged(&digits.pixels[i * area], 1, side, side, 0, 0);
    CHECK(!dark_on_light(picture));
    for (float& v : picture.values) v = 1 - v;
    CHECK(dark_on_light(picture));
  }
}

TEST_CASE("digit: an empty picture is refused: black, white, one pixel, a slope, faint noise") {
  const auto empty = [](const Gray& picture) {
    check_error(Kind::value, {"image: no digit to be seen"}, [&] { find_digit(picture); });
  };
  empty({1, 1, {0.5f}});
  empty({50, 40, std::vector<float>(2000, 0.f)});
  empty({50, 40, std::vector<float>(2000, 1.f)});
  Gray slope{60, 60, std::vector<float>(3600)}, noise = slope;
  std::uint32_t state = 1;
  for (int y = 0; y < 60; ++y)
    for (int x = 0; x < 60; ++x) {
      slope.at(x, y) = static_cast<float>(x) / 200;
      state = state * 1664525u + 1013904223u;
      noise.at(x, y) = .5f + .02f * static_cast<float>(state >> 24) / 255;
    }
  empty(slope);
  empty(noise);
  check_error(Kind::value, {"0 to 255", "0 to 1"}, [] { find_digit({2, 1, {0.f, 255.f}}); });
  check_error(Kind::shape, {"width x height"}, [] { find_digit({2, 2, {1.f}}); });
  check_error(Kind::value, {"NaN"}, [] { find_digit({1, 1, {std::nanf("")}}); });
}
