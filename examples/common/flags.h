// Command lines: long kebab-case flags with defaults shown by --help.
//
//   Flags flags("train_mnist", "Trains a small network on handwritten digits.");
//   flags.whole("--epochs", options.epochs, 1, 1000, "passes over the training set");
//   flags.real("--lr", options.lr, above_zero, "peak learning rate");
//   if (!flags.parse(argc, argv)) return 0;
//
// Each variable's value at registration is the default. Unknown flags, missing or bad values and a
// flag given twice throw Stop with exit code 2 and a line that names the flag. Numbers are read
// the same way in every locale; nan and inf are no numbers.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "ebb/core/device.h"

namespace example {

// Bounds of a real number; `open` ones are excluded themselves.
struct Range {
  double low = -std::numeric_limits<double>::max();
  double high = std::numeric_limits<double>::max();
  bool low_open = false;
  bool high_open = false;
};
inline constexpr Range not_negative{.low = 0};
inline constexpr Range above_zero{.low = 0, .low_open = true};
inline constexpr Range probability{.low = 0, .high = 1, .high_open = true};  // [0, 1)

// Where something else decides: --help then shows no number.
inline constexpr double no_default = std::numeric_limits<double>::quiet_NaN();

class Flags {
 public:
  Flags(std::string program, std::string description);
  ~Flags();

  void whole(const std::string& name, std::int64_t& value, std::int64_t low, std::int64_t high,
             const std::string& help);
  void real(const std::string& name, double& value, Range range, const std::string& help);
  void text(const std::string& name, std::string& value, const std::string& help);
  void choice(const std::string& name, std::string& value, const std::vector<std::string>& choices,
              const std::string& help);
  void toggle(const std::string& name, bool& value, const std::string& help);
  void device(std::string& value);  // --device auto|cpu|cuda|cuda:N
  // Of these flags only one at a time.
  void apart(const std::vector<std::string>& names);
  // Arguments without a flag, at least `least` of them.
  void rest(const std::string& name, std::vector<std::string>& values, int least,
            const std::string& help);

  // False when --help was asked for and shown.
  bool parse(int argc, char** argv);
  bool given(const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "auto" is the GPU where one answers, else the CPU. Error `device` for one that is not there.
ebb::Device choose_device(const std::string& name);

}  // namespace example
