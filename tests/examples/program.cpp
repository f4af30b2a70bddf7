#include "program.h"

#include <algorithm>

namespace ebb::test {
namespace {

std::vector<std::string> environment_of(const Surroundings& around) {
  std::vector<std::string> all = around.environment;
  all.push_back("HOME=" + around.folder);
  all.emplace_back("CUDA_CACHE_DISABLE=1");  // the driver would keep one in HOME
  all.emplace_back(
      "OMP_WAIT_POLICY=passive");  // waiting threads must not take a busy machine's time
  const auto set = [&](const std::string& name) {
    return std::any_of(all.begin(), all.end(), [&](auto& s) { return s.starts_with(name); });
  };
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('=') + 1);
    if (name != "EBB_DATA=" && !set(name)) all.push_back(text);
  }
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (std::string& word : words) out.push_back(word.data());
  out.push_back(nullptr);
  return out;
}

}  // namespace

Program::Program(const std::string& name, std::vector<std::string> words,
                 const Surroundings& around) {
  words.insert(words.begin(), std::string(PROGRAMS) + "/" + name);
  std::vector<std::string> settings = environment_of(around);
  const std::vector<char*> arguments = pointers(words);
  const std::vector<char*> environment = pointers(settings);
  int out[2], err[2];
  REQUIRE(pipe2(out, O_CLOEXEC) == 0);
  REQUIRE(pipe2(err, O_CLOEXEC) == 0);
  if (!around.output.empty()) {
    close(out[1]);
    out[1] = open(around.output.c_str(), O_WRONLY | O_CLOEXEC);
    REQUIRE(out[1] >= 0);
  }
  id_ = fork();
  REQUIRE(id_ >= 0);
  if (id_ == 0) {  // nothing here may allocate: other threads of the tests may hold the heap's lock
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ})
      std::signal(signal, SIG_DFL);
    const rlimit limit{around.file_limit, around.file_limit};
    const bool ready = dup2(out[1], 1) == 1 && dup2(err[1], 2) == 2 &&
                       chdir(around.folder.c_str()) == 0 && setrlimit(RLIMIT_FSIZE, &limit) == 0;
    for (int file = 0; around.closed && file <= 2; ++file) close(file);
    if (ready) execve(arguments[0], arguments.data(), environment.data());
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  pipes_ = {pollfd{out[0], POLLIN, 0}, pollfd{err[0], POLLIN, 0}};
}

Program::~Program() {
  if (id_ > 0) {
    send(SIGKILL);
    waitpid(id_, nullptr, 0);
  }
  for (const pollfd& pipe : pipes_)
    if (pipe.fd >= 0) close(pipe.fd);
}

bool Program::read_some() {
  if (pipes_[0].fd < 0 && pipes_[1].fd < 0) return false;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      last_ - std::chrono::steady_clock::now());
  if (left.count() <= 0) {
    send(SIGKILL);
    ended_.err += "(killed: it took too long)";
    return false;
  }
  if (poll(pipes_.data(), pipes_.size(), static_cast<int>(left.count())) <= 0) return true;
  for (size_t i = 0; i < pipes_.size(); ++i) {
    if (pipes_[i].fd < 0 || pipes_[i].revents == 0) continue;
    char bytes[4096];
    const ssize_t n = read(pipes_[i].fd, bytes, sizeof bytes);
    if (n > 0) {
      (i == 0 ? ended_.out : ended_.err).append(bytes, static_cast<size_t>(n));
    } else if (n == 0 || errno != EINTR) {
      close(pipes_[i].fd);
      pipes_[i].fd = -1;
    }
  }
  return true;
}

bool Program::shows(const std::string& text) {
  while (ended_.out.find(text) == std::string::npos)
    if (!read_some()) return ended_.out.find(text) != std::string::npos;
  return true;
}

void Program::close_output() {
  close(pipes_[0].fd);
  pipes_[0].fd = -1;
}

Ended Program::end() {
  while (read_some()) {}
  int status = 0;
  REQUIRE(waitpid(id_, &status, 0) == id_);
  id_ = -1;
  ended_.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return ended_;
}

}  // namespace ebb::test
