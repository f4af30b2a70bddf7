// A built program, run as a user runs it: in a process of its own, its output caught, never for
// longer than its time.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace ebb::test {

// No EBB_DATA, and no HOME but the working folder, so that nobody's own MNIST is found.
struct Surroundings {
  std::string folder = "/";
  std::vector<std::string> environment;  // "NAME=value", over this process's own
  rlim_t file_limit = RLIM_INFINITY;     // bytes a file may have: a full disk
  std::string output = {};               // a file for stdout, which is then not caught
  bool closed = false;                   // neither stdin nor stdout nor stderr is open
};

struct Ended {
  int code = 0;  // as main returned it; -n when signal n ended it
  std::string out;
  std::string err;
};

class Program {
 public:
  Program(const std::string& name, std::vector<std::string> words, const Surroundings& around);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  bool shows(const std::string& text);  // waits for it on stdout; false when the program ended
  void close_output();                  // as head does after its lines
  void send(int signal) const { ::kill(id_, signal); }
  Ended end();  // waits for that

 private:
  bool read_some();  // false when there is no more to come

  pid_t id_ = -1;
  std::array<pollfd, 2> pipes_{};
  Ended ended_;
  std::chrono::steady_clock::time_point last_ =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
};

inline Ended run_program(const std::string& name, const std::vector<std::string>& words,
                         const Surroundings& around = {}) {
  return Program(name, words, around).end();
}

// One line on stderr that names each part, and this exit code.
inline void check_refused(const Ended& ended, int code, const std::vector<std::string>& parts) {
  CAPTURE(ended.err);
  CHECK(ended.code == code);
  CHECK(ended.err.starts_with("error: "));
  CHECK(ended.err.find('\n') == ended.err.size() - 1);
  for (const std::string& part : parts) {
    CAPTURE(part);
    CHECK(ended.err.find(part) != std::string::npos);
  }
}

}  // namespace ebb::test
