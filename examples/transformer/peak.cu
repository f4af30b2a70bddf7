#include "transformer/peak.h"

#include "ebb/core/cuda.cuh"

namespace transformer {

std::string gpu::device_name(ebb::Device device) {
  cudaDeviceProp properties;
  ebb::gpu::check(cudaGetDeviceProperties(&properties, device.index), "device_name");
  return properties.name;
}

}  // namespace transformer
