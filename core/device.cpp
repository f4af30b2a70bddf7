#include "ebb/core/device.h"

#include <atomic>
#include <charconv>

#include "ebb/core/basic.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"

namespace ebb {

int cuda_device_count() {
  if constexpr (has_cuda) {
    return gpu::device_count();
  } else {
    return 0;
  }
}

void require_available(std::string_view op, Device device) {
  if (!device.is_cuda()) return;
  require(has_cuda, Kind::device, op, "this build has no CUDA kernels", device,
          "cpu (or build with -DEBB_CUDA=ON)");
  const int count = cuda_device_count();
  require(0 <= device.index && device.index < count, Kind::device, op, text("no ", device, " here"),
          text(count, " CUDA devices"), count ? "an index below that" : "cpu");
}

Device parse_device(std::string_view spelling) {
  Device device = cpu_device;
  bool known = spelling == "cpu";
  if (spelling.starts_with("cuda")) {
    device = cuda_device;
    const std::string_view rest = spelling.substr(4);
    known = rest.empty();
    if (rest.size() > 1 && rest[0] == ':') {
      const auto [end, failed] =
          std::from_chars(rest.data() + 1, rest.data() + rest.size(), device.index);
      known = failed == std::errc{} && end == rest.data() + rest.size();
    }
  }
  require(known, Kind::device, "device", "unknown device", spelling, "cpu, cuda or cuda:N");
  require_available("device", device);
  return device;
}

void synchronize(Device device) {
  require_available("synchronize", device);
  if constexpr (has_cuda) {
    if (device.is_cuda()) {
      gpu::use(device);
      gpu::synchronize();
    }
  }
}

namespace {
std::atomic<bool> tf32{false};
}

void allow_tf32(bool on) { tf32 = on; }
bool tf32_allowed() { return tf32; }

}  // namespace ebb
