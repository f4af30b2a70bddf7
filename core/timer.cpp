#include "ebb/core/timer.h"

#include "ebb/core/run.h"

namespace ebb {

Timer::Timer(Device device) {
  require_available("timer", device);
  if constexpr (has_cuda) {
    if (device.is_cuda()) events_ = gpu::make_events(device);
  }
}

void Timer::start() {
  if constexpr (has_cuda) {
    if (events_) return gpu::record_event(*events_, 0);
  }
  start_ = Clock::now();
}

void Timer::stop() {
  if constexpr (has_cuda) {
    if (events_) return gpu::record_event(*events_, 1);
  }
  stop_ = Clock::now();
}

double Timer::seconds() const {
  if constexpr (has_cuda) {
    if (events_) return gpu::seconds_between(*events_);
  }
  return std::chrono::duration<double>(stop_ - start_).count();
}

}  // namespace ebb
