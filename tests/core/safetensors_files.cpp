// Places that fail, disks that fill, writers that are killed.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "ebb/core/file.h"
#include "safetensors.h"

using namespace ebb;
using namespace ebb::test;
namespace fs = std::filesystem;

TEST_CASE("safetensors: places that cannot be read or written are named, with the reason") {
  const CheckpointFolder folder;
  const auto load = [&](const std::string& path, const std::string& reason) {
    check_error(Kind::io, {"load_safetensors: ", reason}, [&] { load_safetensors(path); });
  };
  const auto save = [&](const std::string& path, const std::string& reason) {
    check_error(Kind::io, {"save_safetensors: ", reason},
                [&] { save_safetensors(path, sample()); });
  };
  load(folder.file("none"), "No such file");
  load(folder.path, "Is a directory");
  load(folder.file(std::string("c\0x", 3)), "not a file name");
  save(folder.path, "Is a directory");
  save(folder.file("none/c"), "No such file");
  save(folder.file(std::string(300, 'a')), "too long");
  save("", "not a file name");
  REQUIRE(mkfifo(folder.file("fifo").c_str(), 0600) == 0);
  load(folder.file("fifo"), "not a regular file");  // and does not wait for a writer
  save(folder.file("fifo"), "not a regular file");
  REQUIRE(symlink(folder.file("loop").c_str(), folder.file("loop").c_str()) == 0);
  load(folder.file("loop"), "Too many levels");
  REQUIRE(symlink(folder.file("target").c_str(), folder.file("linked.tmp").c_str()) == 0);
  save(folder.file("linked"), "temporary");
  CHECK(!fs::exists(folder.file("target")));
  CHECK(folder.files() == 3);
  if (geteuid() != 0) {  // root may write everywhere
    fs::permissions(folder.path, fs::perms::owner_read | fs::perms::owner_exec);
    save(folder.file("new"), "Permission denied");
  }
}

TEST_CASE("safetensors: what a killed writer left is replaced; two writers do not mix") {
  const CheckpointFolder folder;
  write(folder.file() + ".tmp", std::string(100'000, 'x'));
  save_safetensors(folder.file(), sample());
  CHECK(same(load_safetensors(folder.file()), sample()));
  CHECK(folder.files() == 1);
  {
    AtomicFile first("test", folder.file());
    check_error(Kind::io, {"someone else is writing it"},
                [&] { save_safetensors(folder.file(), {}); });
  }
  CHECK(same(load_safetensors(folder.file()), sample()));
  CHECK(folder.files() == 1);
}

TEST_CASE("safetensors: a reader beside a writer always sees a whole file") {
  const CheckpointFolder folder;
  const Checkpoint a = sample();
  const Checkpoint b = {{{"w", full({5000}, 3)}}, {}};
  save_safetensors(folder.file(), a);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) save_safetensors(folder.file(), i % 2 ? a : b);
    done = true;
  });
  int mixed = 0;
  while (!done) {
    const Checkpoint c = load_safetensors(folder.file());
    mixed += !same(c, a) && !same(c, b);
  }
  writer.join();
  CHECK(mixed == 0);
}

namespace {

// Fails the n-th call of its kind: once, or from there on.
struct Fault {
  int at = 0;
  int error = 0;
  bool always = false;
  int calls = 0;
  int failed = 0;
  bool strikes() {
    ++calls;
    const bool now = calls == at || (always && calls > at);
    failed += now;
    if (now) errno = error;
    return now;
  }
};
Fault pwrites, fsyncs, renames;
size_t longest_write = SIZE_MAX;

void put_faults_in() {
  pwrites = fsyncs = renames = {};
  longest_write = SIZE_MAX;
  file_calls().pwrite = [](int file, const void* bytes, size_t n, off_t at) {
    return pwrites.strikes() ? -1 : ::pwrite(file, bytes, std::min(n, longest_write), at);
  };
  file_calls().fsync = [](int file) { return file >= 0 && !fsyncs.strikes() ? 0 : -1; };
  file_calls().rename = [](const char* from, const char* to) {
    return renames.strikes() ? -1 : ::rename(from, to);
  };
}

struct FaultsOut {
  ~FaultsOut() { file_calls() = {}; }
};

}  // namespace

TEST_CASE("safetensors: short and interrupted writes are continued") {
  const CheckpointFolder folder;
  const FaultsOut out;
  put_faults_in();
  longest_write = 7;
  pwrites = {.at = 3, .error = EINTR};
  save_safetensors(folder.file(), sample());
  CHECK(pwrites.failed == 1);
  CHECK(pwrites.calls > 80);
  CHECK(same(load_safetensors(folder.file()), sample()));
}

TEST_CASE("safetensors: after the n-th failed call of any kind the old file is intact") {
  const CheckpointFolder folder;
  const FaultsOut out;
  const Checkpoint old = {{{"w", full({10}, 3)}}, {}};
  put_faults_in();
  save_safetensors(folder.file(), old);
  struct Injected {
    Fault& fault;
    std::vector<int> errors;
  };
  const std::vector<Injected> kinds = {
      {pwrites, {ENOSPC, EIO, EDQUOT}}, {fsyncs, {EIO, ENOSPC}}, {renames, {EXDEV, EACCES, EIO}}};
  int faults = 0;
  for (const auto& [fault, errors] : kinds) {
    for (const int error : errors) {
      for (const bool always : {false, true}) {
        for (int n = 1;; ++n) {
          put_faults_in();
          save_safetensors(folder.file(), old);
          put_faults_in();
          longest_write = 12;
          fault = {.at = n, .error = error, .always = always};
          bool raised = false;
          try {
            save_safetensors(folder.file(), sample());
          } catch (const Error& e) {
            raised = e.kind() == Kind::io;
          }
          REQUIRE(folder.files() == 1);
          REQUIRE(raised == (fault.failed > 0));
          const Checkpoint now = load_safetensors(folder.file());
          const bool renamed = renames.calls > renames.failed;  // only its fsync is missing
          REQUIRE(same(now, renamed ? sample() : old));
          if (!raised) break;
          ++faults;
        }
      }
    }
  }
  CHECK(faults >= 250);
}

TEST_CASE("safetensors: a full disk at any byte leaves the old file and no temporary") {
  const CheckpointFolder folder;
  const Checkpoint old = {{{"w", full({10}, 3)}}, {}};
  save_safetensors(folder.file("size"), sample());
  const auto size = fs::file_size(folder.file("size"));
  fs::remove(folder.file("size"));
  for (const std::uintmax_t k : {std::uintmax_t{0}, std::uintmax_t{1}, size / 2, size - 1, size}) {
    save_safetensors(folder.file(), old);
    const Checkpoint next = sample();
    const pid_t child = fork();
    if (child == 0) {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{k, k};
      setrlimit(RLIMIT_FSIZE, &limit);
      int code = 1;
      try {
        save_safetensors(folder.file(), next);
        code = 0;
      } catch (const Error& e) {
        const std::string text = e.what();
        const bool named = text.find(folder.file()) != std::string::npos;
        code = e.kind() == Kind::io && named && text.find("large") != std::string::npos ? 7 : 2;
      }
      _exit(code);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == (k < size ? 7 : 0));
    CHECK(same(load_safetensors(folder.file()), k < size ? old : next));
    CHECK(folder.files() == 1);
  }
}

TEST_CASE("safetensors: a writer killed at any moment leaves the old file or the new one") {
  const CheckpointFolder folder;
  const Checkpoint a = sample();
  const Checkpoint b = {{{"w", full({100'000}, 3)}}, {}};
  save_safetensors(folder.file(), a);
  int mixed = 0;
  for (int k = 0; k < 20; ++k) {
    const pid_t child = fork();
    if (child == 0) {
      for (int i = 0;; ++i) save_safetensors(folder.file(), i % 2 ? a : b);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + 700 * k));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const Checkpoint c = load_safetensors(folder.file());
    mixed += !same(c, a) && !same(c, b);
    CHECK(folder.files() <= 2);
  }
  CHECK(mixed == 0);
}
