#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>

#include "common/exit.h"
#include "common/flags.h"
#include "common/log.h"
#include "common/output.h"
#include "common/plot.h"
#include "common/progress.h"
#include "common/signals.h"
#include "folder.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;
using namespace example;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

struct Options {
  std::int64_t epochs = 3;
  double lr = 0.1;
  std::string out = "out";
  std::string model = "default";
  std::string device = "auto";
  bool dry = false;
  std::vector<std::string> images;
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

// The exit code of a child process that runs f.
int child(const std::function<int()>& f) {
  std::fflush(stdout);
  const pid_t id = fork();
  if (id == 0) _exit(f());
  int status = 0;
  REQUIRE(waitpid(id, &status, 0) == id);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
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

TEST_CASE("run: each way to end has its exit code") {
  const auto code = [](const std::function<void()>& f) {
    return child([&] {
      std::freopen("/dev/null", "w", stderr);
      return run(0, nullptr, [&](int, char**) {
        f();
        return 0;
      });
    });
  };
  CHECK(code([] {}) == 0);
  CHECK(code([] { throw Stop(exit_code::non_finite, "x"); }) == 6);
  const std::pair<Kind, int> codes[] = {{Kind::shape, 3}, {Kind::dtype, 3},  {Kind::device, 4},
                                        {Kind::index, 3}, {Kind::value, 3},  {Kind::state, 3},
                                        {Kind::io, 7},    {Kind::format, 3}, {Kind::limit, 3},
                                        {Kind::oom, 7},   {Kind::cuda, 4}};
  for (const auto& [kind, expected] : codes)
    CHECK(code([kind = kind] { raise(kind, "op", "what", "", ""); }) == expected);
  CHECK(code([] { throw std::bad_alloc(); }) == 7);
  CHECK(code([] { std::filesystem::create_directory("/nowhere/at/all"); }) == 7);
  CHECK(code([] { throw std::runtime_error("x"); }) == 3);
}

TEST_CASE("run: a closed pipe does not end the program") {
  CHECK(child([] {
          int ends[2];
          if (pipe(ends) != 0) return 1;
          close(ends[0]);
          return run(0, nullptr, [&](int, char**) {
            std::FILE* out = fdopen(ends[1], "w");
            Progress progress(out, "images", 100, 0, 1);
            for (int i = 1; i <= 100; ++i)
              if (progress.due()) progress.update("epoch 1/1", i, 0.5, 0.5);
            return 9;
          });
        }) == 9);
}

TEST_CASE("signals: the first asks, the second ends at once") {
  for (const int signal : {SIGINT, SIGTERM})
    for (const int second : {SIGINT, SIGTERM}) {
      CHECK(child([=] {
              catch_signals();
              if (stop_signal() != 0) return 1;
              std::raise(signal);
              return stop_signal() == signal ? stop_code() : 1;
            }) == 128 + signal);
      CHECK(child([=] {
              catch_signals();
              std::raise(signal);
              std::raise(second);  // with the first, as timeout sends it: the same request
              return stop_code();
            }) == 128 + signal);
      CHECK(child([=] {
              catch_signals();
              std::raise(signal);
              usleep(150000);
              std::raise(second);
              return 1;
            }) == 128 + second);
    }
}

TEST_CASE("signals: one that the caller has ignored stays ignored") {
  CHECK(child([] {
          std::signal(SIGHUP, SIG_IGN);
          catch_signals();
          std::raise(SIGHUP);
          return stop_signal();
        }) == 0);
}

TEST_CASE("output folder: is made with its parents, locked, and free again afterwards") {
  const Folder temporary;
  const std::filesystem::path path = temporary.path / "a" / "b";
  {
    const OutputFolder first(path);
    CHECK(read(path / "run.lock") == std::to_string(getpid()));
    check_error(Kind::io, {"is in use", "process " + std::to_string(getpid())},
                [&] { OutputFolder second(path); });
    CHECK(read(path / "run.lock") == std::to_string(getpid()));
  }
  CHECK(std::filesystem::is_empty(path));
  const OutputFolder again(path);
}

TEST_CASE("output folder: the lock of a run that was killed holds nobody up") {
  const Folder temporary;
  CHECK(child([&] {
          auto* left = new OutputFolder(temporary.path);
          (void)left;
          return kill(getpid(), SIGKILL);
        }) == 128 + SIGKILL);
  CHECK(std::filesystem::exists(temporary.path / "run.lock"));
  const OutputFolder next(temporary.path);
}

TEST_CASE("output folder: a file, or a place where nothing can be made, is error io") {
  const Folder temporary;
  std::ofstream(temporary.path / "file") << "x";
  check_error(Kind::io, {"out: "}, [&] { OutputFolder(temporary.path / "file"); });
  check_error(Kind::io, {"out: "}, [&] { OutputFolder(temporary.path / "file" / "below"); });
  check_error(Kind::io, {"out: ", "/proc/ebb"}, [&] { OutputFolder("/proc/ebb"); });
}

TEST_CASE("write_file: replaces a file, and leaves it alone when it cannot") {
  const Folder temporary;
  const auto path = temporary.path / "file";
  write_file(path, "one");
  write_file(path, "two");
  CHECK(read(path) == "two");
  std::filesystem::create_directory(temporary.path / "taken");
  check_error(Kind::io, {"taken"}, [&] { write_file(temporary.path / "taken", "x"); });
  CHECK(!std::filesystem::exists(temporary.path / "taken.tmp"));
}

TEST_CASE("log: lines are on disk at once, and numbers finite or null") {
  const Folder temporary;
  const auto path = temporary.path / "metrics.jsonl";
  MetricsLog log(path, -1);
  log.write({{"step", 1}, {"loss", 0.25}});
  log.write(
      {{"step", 2}, {"loss", not_a_number}, {"rate", std::numeric_limits<double>::infinity()}});
  CHECK(read(path) == "{\"step\":1,\"loss\":0.25}\n{\"step\":2,\"loss\":null,\"rate\":null}\n");
}

TEST_CASE("log: a resumed run goes on after its step and drops what came later") {
  const Folder temporary;
  const auto path = temporary.path / "metrics.jsonl";
  std::ofstream(path) << "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":null}\nnoise\n[1]\n"
                         "{\"step\":3}\n{\"step\":2,\"te";
  MetricsLog log(path, 2);
  CHECK(log.records().size() == 2);
  log.write({{"step", 3}, {"loss", 0.125}});
  CHECK(read(path) ==
        "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"loss\":0.125}\n");
  CHECK(log.records().size() == 3);
}

TEST_CASE("log: without a step to go on from it begins anew") {
  const Folder temporary;
  const auto path = temporary.path / "metrics.jsonl";
  std::ofstream(path) << "{\"step\":1}\n";
  const MetricsLog log(path, -1);
  CHECK(read(path).empty());
}

TEST_CASE("progress: the bar fits every width, and drops what matters least") {
  const Status status{"epoch 1/3", 0.625, 0.08312, 0.97518, 8412.3, 81.2};
  const Style plain{110, false, false};
  CHECK(bar_text(status, "images", plain) ==
        "epoch 1/3 ==================>----------- 62%  loss 0.08312  accuracy 97.52%  "
        "8,412 images/s  1:21 left");
  for (int columns = 0; columns < 130; ++columns) {
    const std::string text = bar_text(status, "images", {columns, false, false});
    CHECK(static_cast<int>(text.size()) <= columns);
  }
  CHECK(bar_text(status, "images", {40, false, false}) ==
        "epoch 1/3 =======>---- 62%  loss 0.08312");
  CHECK(bar_text(status, "images", {100, true, true}).find("\x1b[") != std::string::npos);
  CHECK(bar_text(status, "images", {100, true, false}).find('\x1b') == std::string::npos);
}

TEST_CASE("progress: numbers that are not there are not shown") {
  CHECK(plain_text({"step 10", 0.1, 2.5, not_a_number, 0, 0}, "tokens") ==
        "step 10  10.0%  loss 2.500");
  CHECK(plain_text({"step 10", 0.1, not_a_number, not_a_number, 0, 0}, "tokens").find("loss nan") !=
        std::string::npos);
  CHECK(with_commas(1234567.8) == "1,234,568");
  CHECK(with_commas(999) == "999");
  CHECK(with_commas(1.25) == "1.2");
  CHECK(flops_text(999.4e9) == "999 GFLOP/s");
  CHECK(flops_text(999.6e9) == "1 TFLOP/s");
  CHECK(flops_text(1.234e9) == "1.23 GFLOP/s");
  CHECK(clock_text(59.6) == "1:00");
  CHECK(clock_text(3723) == "1:02:03");
  CHECK(clock_text(not_a_number) == "-:--");
  CHECK(clock_text(1e300) == "-:--");
}

TEST_CASE("progress: operations a second come last, with their share of what the device can do") {
  Status status{"step 10", 0.1, 2.5, not_a_number, 8412.3, 81.2};
  status.flops = 3e12;
  CHECK(plain_text(status, "tokens") ==
        "step 10  10.0%  loss 2.500  8,412 tokens/s  1:21 left  3 TFLOP/s");
  status.utilisation = 0.305;
  CHECK(plain_text(status, "tokens").ends_with("  3 TFLOP/s  MFU 30.5%"));
}

TEST_CASE("progress: what is not a terminal gets plain lines at intervals") {
  std::FILE* out = std::tmpfile();
  {
    Progress progress(out, "images", 100, 0, 25);
    for (int i = 1; i <= 100; ++i)
      if (progress.due()) progress.update("epoch 1/1", i, 1.0 / i, 0.5);
    progress.line("done");
  }
  const auto size = static_cast<size_t>(std::ftell(out));
  std::rewind(out);
  std::string shown(size, ' ');
  CHECK(std::fread(shown.data(), 1, size, out) == size);
  std::fclose(out);
  CHECK(std::count(shown.begin(), shown.end(), '\n') == 5);
  CHECK(shown.find('\r') == shown.npos);
  CHECK(shown.find('\x1b') == shown.npos);
  CHECK(shown.ends_with("done\n"));
}

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
  const Picture flat =
      draw({{"t", "x", {{"c", blue, {0, 1, 2, 3}, {0, 0, not_a_number, 1}, false}}}});
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
