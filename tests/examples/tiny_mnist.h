// MNIST in small, drawn and written by the tests, and train_mnist started on it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "folder.h"
#include "mnist/draw.h"
#include "program.h"

namespace mnist::test {

using ebb::test::check_refused;
using ebb::test::names_in;
using ebb::test::read;
using ebb::test::same_bytes;
using ebb::test::write;

inline std::string idx(const std::vector<std::size_t>& shape,
                       const std::vector<std::uint8_t>& data) {
  std::string out = {0, 0, 8, static_cast<char>(shape.size())};
  for (const std::size_t n : shape)
    for (const int shift : {24, 16, 8, 0}) out += static_cast<char>(n >> shift);
  out.append(data.begin(), data.end());
  return out;
}

inline constexpr const char* train_images = "train-images-idx3-ubyte";
inline constexpr const char* train_labels = "train-labels-idx1-ubyte";

inline void write_digits(const std::filesystem::path& folder, const std::string& start,
                         const Digits& digits) {
  const auto n = static_cast<std::size_t>(digits.count);
  write(folder / (start + "-images-idx3-ubyte"), idx({n, side, side}, digits.pixels));
  write(folder / (start + "-labels-idx1-ubyte"), idx({n}, digits.labels));
}

// A folder that goes away with the test; `data` inside holds 170 digits to train on and 60 to
// test: 10 steps an epoch, 10 digits left over.
struct Tiny : ebb::test::Folder {
  std::filesystem::path data;

  explicit Tiny(int digits = 170) {
    data = path / "digits";
    std::filesystem::create_directory(data);
    const Digits train = draw(digits, 1);
    static const Digits test = draw(60, 2);
    write_digits(data, "train", train);
    write_digits(data, "t10k", test);
  }

  ebb::test::Surroundings around() const { return {path.string(), {}}; }
  std::filesystem::path checkpoint(const std::string& out = "out") const {
    return path / out / "checkpoint.safetensors";
  }

  // Two epochs on the CPU, whatever accuracy that gives; a flag in `more` stands instead.
  std::vector<std::string> words(const std::vector<std::string>& more) const {
    std::vector<std::string> all;
    for (const auto& [flag, value] :
         std::vector<std::pair<std::string, std::string>>{{"--data", data.string()},
                                                          {"--out", "out"},
                                                          {"--device", "cpu"},
                                                          {"--epochs", "2"},
                                                          {"--batch-size", "16"},
                                                          {"--target", "0"}}) {
      if (std::find(more.begin(), more.end(), flag) != more.end()) continue;
      all.push_back(flag);
      all.push_back(value);
    }
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  ebb::test::Ended train(const std::vector<std::string>& more = {}) const {
    return ebb::test::run_program("train_mnist", words(more), around());
  }
};

}  // namespace mnist::test
