// Trains a small convolutional net on handwritten digits, and says how good it is.
#include <zlib.h>

#include <cstdio>

#include "common/exit.h"
#include "common/file.h"
#include "common/flags.h"
#include "common/text.h"
#include "mnist/accuracy.h"
#include "mnist/draw.h"
#include "mnist/model.h"
#include "mnist/trainer.h"

namespace {

using namespace mnist;

constexpr int drawn_train = 60000;
constexpr int drawn_test = 10000;

struct Options {
  std::string data;
  std::string device = "auto";
  std::string out = "out/mnist";
  std::string eval;
  Config config{.rate = example::no_default};
  double target = example::no_default;
  bool drawn = false;
  bool no_augment = false;
  bool resume = false;
  bool dry_run = false;
};

struct Data {
  Digits train;
  Digits test;
  std::string name;
  double target;  // percent of the test digits, when no other is asked for
};

bool parse(int argc, char** argv, Options& o) {
  example::Flags flags("train_mnist", "Trains a convolutional net on handwritten digits (MNIST).");
  flags.text("--data", o.data, "folder with MNIST's files (else $EBB_DATA, ./data, ~/.cache/ebb)");
  flags.device(o.device);
  flags.choice("--model", o.config.model, {"default", "reference"},
               "default, or the net of PyTorch's MNIST example");
  flags.whole("--epochs", o.config.epochs, 1, 10000, "passes over the training digits");
  flags.whole("--batch-size", o.config.batch_size, 1, 1000000, "digits in a step");
  flags.real("--lr", o.config.rate, example::above_zero,
             "peak learning rate (default: 0.004, reference 0.001)");
  flags.whole("--seed", o.config.seed, 0, 1000000000, "of weights, order, dropout, distortion");
  flags.text("--out", o.out, "folder for checkpoint, metrics and curves");
  flags.real("--target", o.target, {.low = 0, .high = 100},
             "percent of test digits below which to exit with 1 (default: by the data)");
  flags.toggle("--drawn", o.drawn, "train on digits that this program draws itself");
  flags.toggle("--no-augment", o.no_augment, "train on the pictures as they are");
  flags.toggle("--resume", o.resume, "go on from the checkpoint in --out");
  flags.text("--eval", o.eval, "only measure this checkpoint on the test digits");
  flags.toggle("--dry-run", o.dry_run, "one step, nothing written");
  flags.apart({"--eval", "--resume", "--dry-run"});
  if (!flags.parse(argc, argv)) return false;
  if (!flags.given("--lr")) o.config.rate = default_rate(o.config.model);
  o.config.augment = !o.no_augment;
  return true;
}

// Real digits where they are found; else digits drawn here, for both or only for training.
Data find_data(const Options& o) {
  const Found found = find(o.data);
  const bool have = !found.folder.empty();
  if (!have && !o.data.empty()) load(o.data, Split::train);  // asked for: raises what is missing
  if (!have) {
    std::printf("MNIST was not found in: %s\n", example::listed(found.tried).c_str());
    std::printf("To get it: examples/mnist/download.sh. Until then, digits drawn here serve.\n");
  }
  Data data;
  if (have && !o.drawn) {
    data = {load(o.data, Split::train), load(o.data, Split::test), "MNIST, " + found.folder, 99};
  } else if (have) {
    data = {draw(drawn_train, 1), load(o.data, Split::test),
            "drawn digits; tested on MNIST, " + found.folder, 85};
  } else {
    data = {draw(drawn_train, 1), draw(drawn_test, 2), "drawn digits", 95};
  }
  return data;
}

std::uint32_t checksum(const Digits& digits) {
  const uLong crc = crc32(0, digits.pixels.data(), static_cast<uInt>(digits.pixels.size()));
  return static_cast<std::uint32_t>(
      crc32(crc, digits.labels.data(), static_cast<uInt>(digits.labels.size())));
}

int report(double accuracy, double target) {
  return example::report_target(
      100 * accuracy >= target,
      example::formatted("test accuracy %.2f %% (target %.2f %%)", 100 * accuracy, target));
}

int train(const Options& o, ebb::Device device) {
  const Data data = find_data(o);
  std::printf("%d digits to train on, %d to test on: %s\n", data.train.count, data.test.count,
              data.name.c_str());
  Trainer trainer(o.config, upload(data.train, device), upload(data.test, device),
                  checksum(data.train));
  if (const auto code = trainer.carry_out({o.out, o.resume, o.dry_run})) return *code;
  return report(trainer.test_accuracy(), o.target >= 0 ? o.target : data.target);
}

int evaluate(const Options& o, ebb::Device device) {
  const auto model = load_model(o.eval, device);
  const Digits test = load(o.data, Split::test);
  constexpr double target = 99;
  return report(accuracy(*model, upload(test, device)), o.target >= 0 ? o.target : target);
}

int body(int argc, char** argv) {
  Options o;
  if (!parse(argc, argv, o)) return example::exit_code::ok;
  const ebb::Device device = example::choose_device(o.device);
  std::printf("device: %s, seed %lld\n", device.is_cuda() ? "cuda" : "cpu",
              static_cast<long long>(o.config.seed));
  return o.eval.empty() ? train(o, device) : evaluate(o, device);
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, body); }
