// MNIST in small, drawn and written by the tests, and train_mnist started on it.
#pragma once
#include "bytes.h"
#include "mnist/draw.h"
#include "tiny_run.h"

namespace mnist::test {

using namespace ebb::test;

inline constexpr const char* train_images = "train-images-idx3-ubyte";
inline constexpr const char* train_labels = "train-labels-idx1-ubyte";

inline void write_digits(const std::filesystem::path& folder, const std::string& start,
                         const Digits& digits) {
  const auto n = static_cast<std::uint32_t>(digits.count);
  write(folder / (start + "-images-idx3-ubyte"), text_of(idx({n, side, side}, digits.pixels)));
  write(folder / (start + "-labels-idx1-ubyte"), text_of(idx({n}, digits.labels)));
}

// A folder that goes away with the test; `data` inside holds 170 digits to train on and 60 to
// test: 10 steps an epoch, 10 digits left over.
struct Tiny : ebb::test::TinyRun {
  std::filesystem::path data = path / "digits";

  // Two epochs on the CPU, whatever accuracy that gives.
  explicit Tiny(int digits = 170) : TinyRun("train_mnist") {
    settings = {{"--data", data.string()}, {"--out", "out"},       {"--device", "cpu"},
                {"--epochs", "2"},         {"--batch-size", "16"}, {"--target", "0"}};
    std::filesystem::create_directory(data);
    static const Digits test = draw(60, 2);
    write_digits(data, "train", draw(digits, 1));
    write_digits(data, "t10k", test);
  }
};

}  // namespace mnist::test
