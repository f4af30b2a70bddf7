#include <chrono>
#include <thread>

#include "twins.h"

using namespace ebb;

TEST_CASE("timer: counts what lies between start and stop, and no more") {
  using std::chrono::milliseconds;
  Timer timer;
  timer.start();
  std::this_thread::sleep_for(milliseconds(20));
  timer.stop();
  std::this_thread::sleep_for(milliseconds(20));
  const double first = timer.seconds();
  CHECK(first >= 0.02);
  CHECK(timer.seconds() == first);
  double least = 1;
  for (int i = 0; i < 100; ++i) {
    timer.start();
    timer.stop();
    least = std::min(least, timer.seconds());
  }
  CHECK(least < 0.001);
}

TEST_CASE("timer: more work takes longer, on every device") {
  for (const Device device : test::devices()) {
    const auto seconds_for = [&](const Tensor& x) {
      Timer timer(device);
      double least = 1e9;
      for (int i = 0; i < 10; ++i) {
        timer.start();
        exp(x);
        timer.stop();
        least = std::min(least, timer.seconds());
      }
      return least;
    };
    const double few = seconds_for(ones({100}, {Dtype::f32, device}));
    const double many = seconds_for(ones({1 << 24}, {Dtype::f32, device}));
    CHECK(few > 0);
    CHECK(many > few);
  }
}

TEST_CASE("timer: a device that is not there is refused") {
  CHECK_THROWS_AS(Timer(Device{Device::Type::cuda, 99}), Error);
}
