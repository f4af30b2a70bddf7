#include "mnist/batch.h"

#include "ebb/core/cuda.cuh"

namespace mnist {
namespace {

// A block a picture, a thread a pixel.
__global__ void __launch_bounds__(area)
    gather_kernel(const std::uint8_t* pixels, const std::int32_t* all_labels,
                  const std::int32_t* order, std::int64_t first, Augment augment, float* x,
                  std::int32_t* labels) {
  const std::int64_t picture = order[first + blockIdx.x];
  const Distortion d = distortion(augment, first + blockIdx.x);
  x[std::int64_t{blockIdx.x} * area + threadIdx.x] =
      batch_pixel(pixels + picture * area, d, threadIdx.x / side, threadIdx.x % side);
  if (threadIdx.x == 0) labels[blockIdx.x] = all_labels[picture];
}

}  // namespace

void gpu::gather(const DeviceDigits& digits, const ebb::Tensor& order, std::int64_t first,
                 const Augment& augment, ebb::Tensor& x, ebb::Tensor& labels) {
  ebb::gpu::launch("make_batch", gather_kernel, dim3(static_cast<unsigned>(x.size(0))), area, 0,
                   digits.pixels.data<std::uint8_t>(), digits.labels.data<std::int32_t>(),
                   order.data<std::int32_t>(), first, augment, x.data<float>(),
                   labels.data<std::int32_t>());
}

}  // namespace mnist
