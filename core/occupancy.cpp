#include "ebb/core/occupancy.h"

#include "ebb/core/device.h"

namespace ebb {

std::vector<KernelUse> kernels_of(const std::function<void()>& f) {
  if constexpr (has_cuda) {
    return gpu::kernels_of(f);
  } else {
    f();
    return {};
  }
}

}  // namespace ebb
