// What a GPU could do at most, to hold what is done against.
#pragma once
#include <string>

#include "ebb/core/device.h"

namespace transformer {

// Dense bf16 floating-point operations a second, as its maker says; 0 for the CPU and for devices
// that are not in the list.
double peak_flops(ebb::Device device);

namespace gpu {
std::string device_name(ebb::Device device);
}

}  // namespace transformer
