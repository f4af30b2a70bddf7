// train_mnist from outside: what runs leave behind, and that the same run gives the same bytes,
// however often it is stopped. See train_mnist_errors.cpp for what it refuses.
#include "metrics.h"
#include "tiny_mnist.h"

using namespace mnist::test;
namespace fs = std::filesystem;

namespace {

std::string last_line(const Ended& ended) { return ended.out.substr(ended.out.rfind("test acc")); }

// Interrupts each run as soon as it has shown a step, until one of them reaches the end. Returns
// how often a run was stopped before that.
int train_with_interruptions(const Tiny& tiny, const Words& words) {
  int stops = 0;
  for (int start = 0; start < 4; ++start) {
    Words now = tiny.words(words);
    if (start > 0) now.emplace_back("--resume");
    Program program("train_mnist", now, tiny.around());
    CHECK(program.shows("epoch "));
    if (start < 3) program.send(SIGINT);
    const Ended ended = program.end();
    CHECK(ended.err == "");
    if (ended.code == 0) break;
    CHECK(ended.code == 130);
    CHECK(ended.out.find("stopped at step ") != std::string::npos);
    ++stops;
  }
  return stops;
}

}  // namespace

TEST_CASE("train_mnist: a run ends with its accuracy and leaves checkpoint, metrics and curves") {
  for (const std::string& device : device_names()) {
    CAPTURE(device);
    const Tiny tiny;
    const Ended ended = tiny.train({"--device", device, "--epochs", "3", "--batch-size", "8"});
    check_success(ended);
    CHECK(ended.out.find("\ntest accuracy ") != std::string::npos);
    CHECK(ended.out.find(" images/s\n") != std::string::npos);
    CHECK(ended.out.find("(target 0.00 %)\n") != std::string::npos);
    CHECK(names_in(tiny.path / "out") ==
          Words{"checkpoint.safetensors", "curves.png", "metrics.jsonl"});
    CHECK(read(tiny.path / "out/curves.png").starts_with("\x89PNG\r\n\x1a\n"));
    int epochs = 0, losses = 0;
    for (const auto& record : metrics(tiny.path / "out/metrics.jsonl")) {
      if (!record.contains("epoch")) {
        ++losses;
        CHECK(record.at("step") == 50);
        CHECK(record.at("loss").get<double>() > 0);
        continue;
      }
      ++epochs;
      CHECK(record.at("epoch") == epochs);
      CHECK(record.at("step") == 21 * epochs);
      CHECK(record.at("test_accuracy").get<double>() >= 0.1);
      const double seconds = record.at("seconds");
      CHECK(seconds > 0);
      CHECK(record.at("images_per_second").get<double>() * seconds ==
            doctest::Approx(21 * 8).epsilon(1e-9));
    }
    CHECK(epochs == 3);
    CHECK(losses == 1);
  }
}

TEST_CASE("train_mnist: the same seed gives the same checkpoint, another seed another") {
  for (const std::string& device : device_names()) {
    CAPTURE(device);
    const Tiny tiny;
    const auto train = [&](const std::string& out, const std::string& seed) {
      check_success(tiny.train({"--device", device, "--out", out, "--seed", seed}));
    };
    train("a", "0"), train("b", "0"), train("c", "1");
    CHECK(same_bytes(tiny.checkpoint("a"), tiny.checkpoint("b")));
    CHECK_FALSE(same_bytes(tiny.checkpoint("a"), tiny.checkpoint("c")));
  }
}

TEST_CASE("train_mnist: the number of threads does not change a bit") {
  for (const std::string model : {"default", "reference"}) {
    CAPTURE(model);
    const Tiny tiny;
    for (const std::string threads : {"1", "2"}) {
      auto around = tiny.around();
      around.environment = {"OMP_NUM_THREADS=" + threads};
      check_success(tiny.train({"--model", model, "--epochs", "1", "--out", threads}, around));
    }
    CHECK(same_bytes(tiny.checkpoint("1"), tiny.checkpoint("2")));
  }
}

TEST_CASE("train_mnist: interrupted and resumed, a run reaches the same bytes") {
  for (const std::string& device : device_names())
    for (const std::string model : {"default", "reference"}) {
      CAPTURE(device);
      CAPTURE(model);
      const Tiny tiny;
      const auto words = [&](const std::string& out) {
        return Words{"--out",        out,   "--device", device,
                     "--model",      model, "--epochs", model == "default" ? "4" : "3",
                     "--batch-size", "8"};
      };
      check_success(tiny.train(words("whole")));
      // A busy machine may deliver the signal too late: then once more.
      int stops = 0;
      for (int attempt = 0; attempt < 5 && stops == 0; ++attempt)
        stops = train_with_interruptions(tiny, words("parts"));
      CHECK(stops >= 1);
      CHECK(same_bytes(tiny.checkpoint("whole"), tiny.checkpoint("parts")));
      CHECK(same_bytes(tiny.path / "whole/curves.png", tiny.path / "parts/curves.png"));
      const auto records = computed(tiny.path / "whole/metrics.jsonl");
      CHECK(records.at(2).contains("loss"));
      CHECK(records == computed(tiny.path / "parts/metrics.jsonl"));
    }
}

TEST_CASE("train_mnist: killed and resumed, a run reaches the same bytes") {
  const Tiny tiny;
  check_success(tiny.train({"--epochs", "3", "--out", "whole"}));
  for (const useconds_t pause : {0, 50000}) {
    fs::remove_all(tiny.path / "out");
    Program program("train_mnist", tiny.words({"--epochs", "3"}), tiny.around());
    CHECK(program.shows("epoch 1/3: "));
    usleep(pause);
    program.send(SIGKILL);
    const int code = program.end().code;
    CHECK((code == -SIGKILL || code == 0));
    check_success(tiny.train({"--epochs", "3", "--resume"}));
    CHECK(same_bytes(tiny.checkpoint("whole"), tiny.checkpoint()));
    CHECK(names_in(tiny.path / "out").size() == 3);
  }
}

TEST_CASE("train_mnist: a finished run that is resumed tells its accuracy again") {
  const Tiny tiny;
  const Ended first = tiny.train();
  check_success(first);
  const std::string bytes = read(tiny.checkpoint());
  const Ended again = tiny.train({"--resume"});
  check_success(again);
  CHECK(last_line(first) == last_line(again));
  CHECK(read(tiny.checkpoint()) == bytes);
}

TEST_CASE("train_mnist: below its target it exits with 1") {
  const Tiny tiny;
  const Ended ended = tiny.train({"--epochs", "1", "--target", "100"});
  check_refused(ended, 1, {"target"});
  CHECK(ended.out.find("(target 100.00 %)") != std::string::npos);
  CHECK(fs::exists(tiny.checkpoint()));
}

TEST_CASE("train_mnist: --eval measures a checkpoint as its run did, and writes nothing") {
  const Tiny tiny;
  const Ended trained = tiny.train();
  check_success(trained);
  const Words before = names_in(tiny.path);
  const std::string bytes = read(tiny.checkpoint());
  const Ended measured = tiny.train({"--eval", tiny.checkpoint().string(), "--out", "unused"});
  check_success(measured);
  CHECK(last_line(measured) == last_line(trained));
  CHECK(names_in(tiny.path) == before);
  CHECK(read(tiny.checkpoint()) == bytes);
  const Ended missed = tiny.train({"--eval", tiny.checkpoint().string(), "--target", "100"});
  check_refused(missed, 1, {"target"});
}

TEST_CASE("train_mnist: --dry-run takes one step and writes nothing") {
  for (const std::string& device : device_names()) {
    const Tiny tiny;
    const Ended ended = tiny.train({"--device", device, "--dry-run"});
    check_success(ended);
    CHECK(ended.out.find("one step: loss ") != std::string::npos);
    CHECK(names_in(tiny.path) == Words{"digits"});
  }
}

TEST_CASE("train_mnist: without data it says where it looked, how to get it, and draws digits") {
  const Tiny tiny;
  const Ended ended = run_program("train_mnist", {"--device", "cpu", "--dry-run"}, tiny.around());
  check_success(ended);
  for (const std::string part : {"not found in: data", "/.cache/ebb", "examples/mnist/download.sh",
                                 "60000 digits to train on, 10000 to test on: drawn digits"})
    CHECK_MESSAGE(ended.out.find(part) != std::string::npos, part << " in " << ended.out);
}

TEST_CASE("train_mnist: a reader that goes away does not end the run") {
  const Tiny tiny;
  Program program("train_mnist", tiny.words({}), tiny.around());
  CHECK(program.shows("device: cpu"));
  program.close_output();
  CHECK(program.end().code == 0);
  CHECK(fs::exists(tiny.checkpoint()));
}

TEST_CASE("train_mnist: --help shows no number where the net or the data decide") {
  const Ended ended = run_program("train_mnist", {"--help"});
  CHECK(ended.code == 0);
  for (const std::string flag : {"--lr X", "--target X"}) {
    CHECK(ended.out.find(flag + " ") != std::string::npos);
    CHECK(ended.out.find(flag + "=") == std::string::npos);
  }
  CHECK(ended.out.find("--epochs N=3 ") != std::string::npos);
}
