#include "common/flags.h"

#include <clocale>

#include "common/exit.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;
using namespace example;

namespace {

struct Options {
  std::int64_t epochs = 3;
  double lr = 0.1;
  std::string out = "out";
  std::string model = "default";
  std::string device = "auto";
  bool dry = false;
};

Options parse(std::vector<std::string> words) {
  Options options;
  Flags flags("program", "For tests.");
  flags.whole("--epochs", options.epochs, 1, 1000, "passes");
  flags.real("--lr", options.lr, above_zero, "learning rate");
  flags.text("--out", options.out, "folder");
  flags.choice("--model", options.model, {"default", "reference"}, "network");
  flags.toggle("--dry-run", options.dry, "one step");
  flags.device(options.device);
  words.insert(words.begin(), "program");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  const bool go_on = flags.parse(static_cast<int>(argv.size()), argv.data());
  CHECK(go_on);
  return options;
}

// The message with which a command line is refused.
std::string refusal(const std::vector<std::string>& words) {
  try {
    parse(words);
  } catch (const Stop& stop) {
    CHECK(stop.code() == exit_code::usage);
    return stop.what();
  }
  FAIL_CHECK("nothing was refused");
  return "";
}

}  // namespace

TEST_CASE("flags: values, defaults and both spellings") {
  CHECK(parse({}).epochs == 3);
  const Options options = parse({"--epochs", "7", "--lr=2e-3", "--model", "reference", "--dry-run",
                                 "--device", "cuda:1", "--out", "a b"});
  CHECK(options.epochs == 7);
  CHECK(options.lr == 2e-3);
  CHECK(options.model == "reference");
  CHECK(options.device == "cuda:1");
  CHECK(options.out == "a b");
  CHECK(options.dry);
}

TEST_CASE("flags: each bad value is refused by one line that names its flag") {
  for (const char* value : {"abc", "1e99", "-1", "0", "", "1001", "3.5", "7x", " 7", "0x10",
                            "99999999999999999999", "1,5"})
    CHECK(refusal({"--epochs", value}).starts_with("--epochs: "));
  for (const char* value : {"nan", "inf", "-inf", "NaN", "0", "-0.1", "1e999", "1,5", "", "1e"}) {
    const std::string message = refusal({std::string("--lr=") + value});
    CHECK_MESSAGE(message.find("--lr") != message.npos, value, " → ", message);
  }
  CHECK(refusal({"--model", "huge"}) ==
        "--model: unknown; got 'huge'; expected default, reference");
  for (const char* value : {"gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"})
    CHECK(refusal({"--device", value}).starts_with("--device: "));
  CHECK(refusal({"--out", ""}).find("--out") != std::string::npos);
}

TEST_CASE("flags: unknown, repeated and incomplete flags are refused by name") {
  for (const auto& words : std::vector<std::vector<std::string>>{
           {"--epoch", "3"}, {"--nope"}, {"--nope=1"}, {"-x"}, {"stray"}}) {
    const std::string message = refusal(words);
    CHECK_MESSAGE(message.find(words[0].substr(0, words[0].find('='))) != message.npos, message);
  }
  for (const auto& words : std::vector<std::vector<std::string>>{{"--epochs"},
                                                                 {"--epochs", "1", "--epochs", "1"},
                                                                 {"--epochs=1", "--epochs=1"},
                                                                 {"--epochs", "--lr", "1"}}) {
    const std::string message = refusal(words);
    CHECK_MESSAGE(message.find("--epochs") != message.npos, message);
    CHECK(message.find('\n') == message.npos);
  }
  CHECK(refusal({"--dry-run", "--dry-run"}).find("--dry-run") != std::string::npos);
  CHECK(refusal({"--bad\n\x1b[31mflag"}).find('\n') == std::string::npos);
}

TEST_CASE("flags: numbers read the same in a locale with decimal commas") {
  const std::string before = std::setlocale(LC_ALL, nullptr);
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"})
    if (std::setlocale(LC_ALL, name)) break;
  CHECK(parse({"--lr", "0.25"}).lr == 0.25);
  std::setlocale(LC_ALL, before.c_str());
}

TEST_CASE("flags: a device that is not there is error device, auto is not") {
  CHECK(choose_device("cpu") == cpu_device);
  CHECK(choose_device("auto").is_cuda() == (cuda_device_count() > 0));
  check_error(Kind::device, {"device: "}, [] { choose_device("cuda:99"); });
}
