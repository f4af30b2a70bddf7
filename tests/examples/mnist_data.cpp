// Files are written by the tests themselves into a temporary folder; no MNIST is needed.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "ebb/core/error.h"
#include "folder.h"
#include "mnist/data.h"
#include "mnist/draw.h"
#include "mnist/idx.h"
#include "mnist/terminal.h"
#include "twins.h"

using namespace mnist;
using namespace mnist::test;
using ebb::Kind;
using ebb::test::check_error;
using ebb::test::Stopwatch;
namespace fs = std::filesystem;

namespace {

struct Folder : ebb::test::Folder {
  std::string operator/(const std::string& name) const { return (path / name).string(); }

  std::string write(const std::string& name, const Bytes& bytes) const {
    fs::create_directories((path / name).parent_path());
    ebb::test::write(path / name, text_of(bytes));
    return *this / name;
  }
};

// An environment variable for the length of a test.
struct Setting {
  std::string name, before;
  bool was_set;
  Setting(const char* key, const std::string& value) : name(key), was_set(std::getenv(key)) {
    if (was_set) before = std::getenv(key);
    ::setenv(key, value.c_str(), 1);
  }
  ~Setting() {
    if (was_set)
      ::setenv(name.c_str(), before.c_str(), 1);
    else
      ::unsetenv(name.c_str());
  }
};

Bytes count_up(std::size_t n, std::size_t modulus = 251) {
  Bytes out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::uint8_t>(i % modulus);
  return out;
}

const Bytes small = idx({2, 3, 4}, count_up(24));

void write_mnist(const Folder& folder, const std::string& where, std::uint32_t count,
                 const std::string& joint = "-", bool packed = false) {
  for (const std::string half : {"train", "t10k"}) {
    const Bytes images = idx({count, 28, 28}, count_up(count * area));
    const Bytes labels = idx({count}, count_up(count, 10));
    const std::string end = packed ? ".gz" : "";
    folder.write(where + half + "-images" + joint + "idx3-ubyte" + end,
                 packed ? zipped(images) : images);
    folder.write(where + half + "-labels" + joint + "idx1-ubyte" + end,
                 packed ? zipped(labels) : labels);
  }
}

long peak_kib() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

}  // namespace

TEST_CASE("idx: raw and gzip files load alike, whatever their names say") {
  const Folder folder;
  for (const std::string& path :
       {folder.write("raw", small), folder.write("packed.gz", zipped(small)),
        folder.write("raw.gz", small), folder.write("packed", zipped(small))}) {
    const Idx got = read_idx(path, 3);
    CHECK(got.shape == std::vector<std::int64_t>{2, 3, 4});
    CHECK(got.data == count_up(24));
  }
  CHECK(read_idx(folder.write("none", idx({0, 28, 28}, {})), 3).data.empty());
}

TEST_CASE("idx: a missing file, a folder, a FIFO, a device and a forbidden file are io errors") {
  const Folder folder;
  check_error(Kind::io, {"idx: cannot open", "gone", "No such file"},
              [&] { read_idx(folder / "gone", 1); });
  check_error(Kind::io, {"directory"}, [&] { read_idx(folder.path.string(), 1); });
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  check_error(Kind::io, {"fifo", "FIFO"}, [&] { read_idx(folder / "fifo", 1); });
  check_error(Kind::io, {"/dev/zero", "device"}, [&] { read_idx("/dev/zero", 1); });
  if (::geteuid() != 0) {  // root may read everything
    const std::string path = folder.write("forbidden", small);
    fs::permissions(path, fs::perms::none);
    check_error(Kind::io, {"forbidden", "ermission"}, [&] { read_idx(path, 3); });
  }
}

TEST_CASE("idx: strange paths are io errors with the name escaped on one line") {
  const Folder folder;
  fs::create_symlink("loop", folder.path / "loop");
  check_error(Kind::io, {"loop"}, [&] { read_idx(folder / "loop", 1); });
  check_error(Kind::io, {"a\\x0ab"}, [&] { read_idx(folder / "a\nb", 1); });
  check_error(Kind::io, {"too long", "5000 bytes"}, [] { read_idx(std::string(5000, 'a'), 1); });
  check_error(Kind::io, {"NUL"}, [] { read_idx(std::string("a\0b", 3), 1); });
  folder.write("sub/x", small);
  folder.write("y", small);
  CHECK(read_idx(folder.path.string() + "/sub/../y", 3).data.size() == 24);
}

TEST_CASE("idx: a file cut anywhere is refused, raw or packed") {
  const Folder folder;
  const Bytes packed = zipped(small);
  for (std::size_t n = 0; n < small.size(); ++n)
    check_error(Kind::format, {"cut", n < 16 ? "truncated header" : "does not hold the data"}, [&] {
      read_idx(
          folder.write("cut", Bytes(small.begin(), small.begin() + static_cast<std::ptrdiff_t>(n))),
          3);
    });
  for (std::size_t n = 2; n < packed.size(); ++n)
    check_error(Kind::format, {"cut", "gzip stream is cut short"}, [&] {
      read_idx(folder.write("cut",
                            Bytes(packed.begin(), packed.begin() + static_cast<std::ptrdiff_t>(n))),
               3);
    });
}

TEST_CASE("idx: headers that lie are refused before memory is taken") {
  const Folder folder;
  const auto refuse = [&](Kind kind, const std::string& part, const Bytes& bytes,
                          std::size_t rank) {
    for (const bool packed : {false, true})
      check_error(kind, {part},
                  [&] { read_idx(folder.write("file", packed ? zipped(bytes) : bytes), rank); });
  };
  refuse(Kind::format, "magic 0x89504E47", {0x89, 'P', 'N', 'G', 0, 0, 0, 0}, 1);
  refuse(Kind::format, "magic 0x00000A01", idx({1}, {1}, 0x0A), 1);
  refuse(Kind::format, "magic 0x0000FF01", idx({1}, {1}, 0xFF), 1);
  refuse(Kind::format, "byte-swapped?", {1, 8, 0, 0, 1, 0, 0, 0, 7}, 1);
  refuse(Kind::format, "byte-swapped?", {3, 8, 0, 0}, 3);
  refuse(Kind::dtype, "i16", idx({1}, {1, 2}, 0x0B), 1);
  refuse(Kind::dtype, "f32", idx({1}, {1, 2, 3, 4}, 0x0D), 1);
  refuse(Kind::format, "rank 0", {0, 0, 8, 0}, 1);
  refuse(Kind::limit, "255", {0, 0, 8, 255}, 1);
  refuse(Kind::limit, "too many elements", idx({~0u, ~0u, ~0u}, {}), 3);
  refuse(Kind::limit, "too many elements", idx({1u << 16, 1u << 16, 1}, {}), 3);
  refuse(Kind::limit, "too much data", idx({(1u << 30) + 1}, {}), 1);
  refuse(Kind::format, "declare", idx({47040000}, count_up(100)), 1);
  refuse(Kind::format, "rank 1; expected rank 3", idx({4}, count_up(4)), 3);
  refuse(Kind::format, "rank 3; expected rank 1", small, 1);
}

TEST_CASE("idx: bytes left over are refused: raw, after the stream, a second member") {
  const Folder folder;
  check_error(Kind::format, {"24 declared", "25 bytes present"},
              [&] { read_idx(folder.write("a", joined(small, {0})), 3); });
  check_error(Kind::format, {"after the end of the gzip stream"},
              [&] { read_idx(folder.write("b", joined(zipped(small), {0})), 3); });
  check_error(Kind::format, {"after the end of the gzip stream"},
              [&] { read_idx(folder.write("c", joined(zipped(small), zipped(small))), 3); });
  check_error(Kind::limit, {"unpacks to more"},
              [&] { read_idx(folder.write("d", zipped(joined(small, {0}))), 3); });
  check_error(Kind::format, {"gzip within gzip"},
              [&] { read_idx(folder.write("e", zipped(zipped(small))), 3); });
}

TEST_CASE("idx: each damage to a gzip stream has its own message") {
  const Folder folder;
  const Bytes good = zipped(small);
  const auto damaged = [&](std::size_t at, std::uint8_t flip, const std::string& part) {
    Bytes bytes = good;
    bytes[at] ^= flip;
    check_error(Kind::format, {"damaged gzip stream", part},
                [&] { read_idx(folder.write("file", bytes), 3); });
  };
  damaged(2, 1, "unknown compression method");
  damaged(3, 0x80, "unknown header flags");
  damaged(10, 6, "invalid");
  damaged(good.size() - 8, 1, "incorrect data check");
  damaged(good.size() - 4, 1, "incorrect length check");
}

TEST_CASE("idx: a gzip bomb stops at the declared size, quickly and in little memory") {
  const Folder folder;
  const Bytes bomb = zipped(joined(idx({1, 28, 28}, {}), Bytes(std::size_t{100} << 20)));
  const std::string path = folder.write("bomb", bomb);
  const Bytes honest = zipped(joined(idx({0xFFFF, 0xFFFF}, {}), Bytes(1000)));
  const std::string large = folder.write("large", honest);
  const Bytes lying = zipped(joined(idx({1u << 30}, {}), Bytes(std::size_t{2} << 20)));
  const std::string missing = folder.write("missing", lying);
  const long before = peak_kib();
  const Stopwatch watch;
  check_error(Kind::limit, {"unpacks to more than its header declares"},
              [&] { read_idx(path, 3); });
  check_error(Kind::limit, {"too many elements"}, [&] { read_idx(large, 2); });
  check_error(Kind::format, {"1073741824 declared"}, [&] { read_idx(missing, 1); });
  CHECK(watch.seconds() <= 1);
  CHECK(peak_kib() - before <= 64 * 1024);
}

TEST_CASE("mnist: every layout and spelling is found, and the first place in order wins") {
  for (const std::string where : {"", "MNIST/raw/", "mnist/", "mnist/raw/"})
    for (const std::string joint : {"-", "."})
      for (const bool packed : {false, true}) {
        const Folder folder;
        write_mnist(folder, where, 3, joint, packed);
        for (const Split split : {Split::train, Split::test}) {
          const Digits digits = load(folder.path.string(), split);
          CHECK(digits.count == 3);
          CHECK(digits.pixels == count_up(3 * area));
          CHECK(digits.labels == Bytes{0, 1, 2});
        }
      }
  const Folder first, home;
  write_mnist(first, "", 4);
  write_mnist(home, ".cache/ebb/", 5);
  const Setting home_setting("HOME", home.path.string());
  {
    const Setting data("EBB_DATA", first.path.string());
    CHECK(load("", Split::train).count == 4);
  }
  const Setting data("EBB_DATA", home / "nothing");
  if (!fs::exists("data")) CHECK(load("", Split::train).count == 5);
}

TEST_CASE("mnist: found nowhere, the message lists the places tried and how to get it") {
  const Folder folder;
  CHECK(find(folder.path.string()).folder.empty());
  check_error(Kind::io,
              {"mnist: MNIST was not found", folder / "MNIST/raw", folder / "mnist",
               "examples/mnist/download.sh"},
              [&] { load(folder.path.string(), Split::test); });
}

TEST_CASE("mnist: a broken or missing part is an error, never passed over for another copy") {
  const Folder folder;
  write_mnist(folder, "mnist/", 2);
  folder.write("train-images-idx3-ubyte", {});
  check_error(Kind::io, {"lacks the training labels"},
              [&] { load(folder.path.string(), Split::train); });
  folder.write("train-labels-idx1-ubyte", idx({1}, {0}));
  check_error(Kind::format, {"truncated header", "0 bytes"},
              [&] { load(folder.path.string(), Split::train); });
  check_error(Kind::io, {"lacks the test images"},
              [&] { load(folder.path.string(), Split::test); });
  fs::remove(folder / "train-images-idx3-ubyte");
  fs::create_symlink("nowhere", folder / "train-images-idx3-ubyte");
  check_error(Kind::io, {"No such file"}, [&] { load(folder.path.string(), Split::train); });
}

TEST_CASE("mnist: wrong sizes, counts, labels and swapped files name what is wrong") {
  const Folder folder;
  const std::string two = folder.write("two", idx({2, 28, 28}, count_up(2 * area)));
  const std::string labels = folder.write("labels", idx({2}, {9, 0}));
  CHECK(load_files(two, labels).count == 2);
  check_error(Kind::format, {"swapped?", "labels"}, [&] { load_files(labels, two); });
  check_error(Kind::value, {"2 images, 3 labels"}, [&] {
    load_files(two, folder.write("l", idx({3}, {0, 1, 2})));
  });
  check_error(Kind::shape, {"28x27", "28x28"}, [&] {
    load_files(folder.write("i", idx({2, 28, 27}, count_up(2 * 28 * 27))), labels);
  });
  for (const int bad : {10, 255}) {
    Bytes many = count_up(20, 10);
    many[17] = static_cast<std::uint8_t>(bad);
    check_error(Kind::index, {"label " + std::to_string(bad) + " at item 17"}, [&] {
      load_files(folder.write("i", idx({20, 28, 28}, Bytes(20 * area))),
                 folder.write("l", idx({20}, many)));
    });
  }
  check_error(Kind::value, {"no images"}, [&] {
    load_files(folder.write("i", idx({0, 28, 28}, {})), folder.write("l", idx({0}, {})));
  });
}

TEST_CASE("draw: each digit depends on the seed and its index alone") {
  const Digits a = draw(500, 7), b = draw(500, 7), longer = draw(700, 7), other = draw(500, 8);
  CHECK(a.pixels == b.pixels);
  CHECK(std::equal(a.pixels.begin(), a.pixels.end(), longer.pixels.begin()));
  CHECK(a.pixels != other.pixels);
  for (std::size_t i = 0; i < 500; ++i) CHECK(a.labels[i] == i % 10);
  CHECK(draw(0, 1).pixels.empty());
  check_error(Kind::value, {"mnist: ", "-1"}, [] { draw(-1, 1); });
}

TEST_CASE("draw: digits lie as MNIST's do: within 20x20, centred by mass, full ink inside") {
  const Digits digits = draw(1000, 3);
  for (std::size_t i = 0; i < 1000; ++i) {
    int x0 = side, x1 = 0, y0 = side, y1 = 0, largest = 0;
    double mass = 0, mass_x = 0, mass_y = 0;
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x) {
        const int v = digits.pixels[i * area + static_cast<std::size_t>(y * side + x)];
        largest = std::max(largest, v);
        mass += v;
        mass_x += v * (x + 0.5);
        mass_y += v * (y + 0.5);
        if (v == 0) continue;
        x0 = std::min(x0, x), x1 = std::max(x1, x + 1);
        y0 = std::min(y0, y), y1 = std::max(y1, y + 1);
      }
    CHECK(std::max(x1 - x0, y1 - y0) <= 20);
    CHECK(std::max(x1 - x0, y1 - y0) >= 19);
    CHECK(largest >= 200);
    CHECK(std::abs(mass_x / mass - 14) <= 0.51);
    CHECK(std::abs(mass_y / mass - 14) <= 0.51);
  }
}

TEST_CASE("draw: the bytes are the same on every machine") {
  const Digits digits = draw(200, 1);
  CHECK(crc32(0, digits.pixels.data(), static_cast<uInt>(digits.pixels.size())) == 3046715299u);
}

TEST_CASE("terminal: blocks in UTF-8, shades in ASCII, 14 lines either way") {
  Bytes pixels(area);
  pixels[0] = 255;         // upper left
  pixels[side + 1] = 255;  // lower half of the next column
  pixels[2] = pixels[side + 2] = 255;
  const std::string blocks = show(pixels.data(), true), ascii = show(pixels.data(), false);
  CHECK(blocks.substr(0, blocks.find('\n')) == "▀▄█");
  CHECK(ascii.substr(0, ascii.find('\n')) == "++@");
  CHECK(std::count(blocks.begin(), blocks.end(), '\n') == 14);
  CHECK(std::count(ascii.begin(), ascii.end(), '\n') == 14);
  const Setting all("LC_ALL", "C");
  CHECK(show(pixels.data()) == ascii);
  for (const char* locale : {"de_DE.UTF-8", "de_DE.utf8", "C.utf-8"}) {
    const Setting utf8("LC_ALL", locale);
    CHECK(show(pixels.data()) == blocks);
  }
}
