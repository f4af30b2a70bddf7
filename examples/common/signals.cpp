#include "common/signals.h"

#include <csignal>

namespace example {
namespace {

constexpr int taken[] = {SIGINT, SIGTERM, SIGHUP};
volatile std::sig_atomic_t received = 0;

extern "C" void on_stop_signal(int signal) {
  received = signal;
  for (const int other : taken) std::signal(other, SIG_DFL);  // the second one ends the program
}

}  // namespace

void catch_signals() {
  received = 0;
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
