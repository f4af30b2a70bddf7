#include "common/signals.h"

#include <atomic>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace example {
namespace {

constexpr int taken[] = {SIGINT, SIGTERM, SIGHUP};
volatile std::sig_atomic_t received = 0;
std::atomic<std::int64_t> asked = 0;  // when, in nanoseconds; 0: not yet

// What arrives with the first is the same request: timeout and job managers signal a process and
// then its group. A later one ends the program.
extern "C" void on_stop_signal(int signal) {
  constexpr std::int64_t together = 100'000'000;
  timespec clock = {};
  clock_gettime(CLOCK_MONOTONIC, &clock);
  const std::int64_t now = clock.tv_sec * 1'000'000'000 + clock.tv_nsec;
  std::int64_t before = 0;
  if (asked.compare_exchange_strong(before, now)) {
    received = signal;
  } else if (now - before > together) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

}  // namespace

void catch_signals() {
  received = 0;
  asked = 0;
  for (const int signal : taken) {
    struct sigaction action = {};
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = on_stop_signal;
    action.sa_flags = SA_RESTART;  // a write that is under way goes on
    sigaction(signal, &action, nullptr);
  }
}

int stop_signal() { return received; }

int stop_code() { return 128 + received; }

}  // namespace example
