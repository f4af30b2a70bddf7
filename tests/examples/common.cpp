#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "common/exit.h"
#include "common/log.h"
#include "common/output.h"
#include "common/progress.h"
#include "common/signals.h"
#include "folder.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;
using namespace example;

namespace {

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
  log.write({{"step", 2}, {"loss", NAN}, {"rate", INFINITY}});
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
