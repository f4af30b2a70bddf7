// Ctrl-C and its kin: the first asks a trainer to finish its step, save and end; the second, a
// tenth of a second later or more, ends it at once.
#pragma once

namespace example {

// Takes SIGINT, SIGTERM and SIGHUP, unless the caller has them ignored (nohup, background jobs).
void catch_signals();

// The signal that asked to stop; 0 when none has.
int stop_signal();

// What to return then: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
int stop_code();

}  // namespace example
