#include "ebb/core/timer.h"

#include "ebb/core/cuda.cuh"
#include "ebb/core/run.h"

namespace ebb::gpu {

struct Events {
  Device device;
  cudaEvent_t event[2] = {};

  explicit Events(Device d) : device(d) {
    use(device);
    for (cudaEvent_t& e : event) check(cudaEventCreate(&e), "timer");
  }
  ~Events() {
    for (cudaEvent_t e : event)
      if (e) cudaEventDestroy(e);
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
};

std::shared_ptr<Events> make_events(Device device) { return std::make_shared<Events>(device); }

void record_event(Events& events, int which) {
  use(events.device);
  check(cudaEventRecord(events.event[which], stream()), "timer");
}

double seconds_between(const Events& events) {
  float milliseconds = 0;
  check(cudaEventSynchronize(events.event[1]), "timer");
  check(cudaEventElapsedTime(&milliseconds, events.event[0], events.event[1]), "timer");
  return milliseconds * 1e-3;
}

}  // namespace ebb::gpu
