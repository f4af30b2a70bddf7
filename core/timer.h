// Timer: how long work on a device takes. On a GPU two events on the stream that the work is queued
// on, so that launching is not counted and nothing waits until seconds() asks; on the CPU a clock.
//
//   Timer timer(x.device());
//   timer.start();
//   silu(x);
//   timer.stop();
//   timer.seconds();
#pragma once
#include <chrono>
#include <memory>

#include "ebb/core/device.h"

namespace ebb {

namespace gpu {
struct Events;  // two, and their device
}

class Timer {
 public:
  explicit Timer(Device device = cpu_device);  // error `device`
  void start();
  void stop();
  double seconds() const;  // from the last start() to the last stop(); waits for the latter

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_;
  Clock::time_point stop_;
  std::shared_ptr<gpu::Events> events_;  // null on the CPU
};

namespace gpu {
std::shared_ptr<Events> make_events(Device device);
void record_event(Events& events, int which);  // 0 starts, 1 stops
double seconds_between(const Events& events);
}  // namespace gpu

}  // namespace ebb
