#include <cmath>

#include "ebb/core/cuda.cuh"
#include "ebb/core/random.h"

namespace ebb {
namespace {

constexpr int threads = 256;

template <class T>
__global__ void uniform_kernel(Stream stream, gpu::Compute<T> low, gpu::Compute<T> width,
                               gpu::Compute<T> below_high, T* y, std::int64_t n) {
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  const Philox random = philox(stream.seed, block, stream.now());
  for (int j = 0; j < 4 && 4 * block + j < n; ++j)
    y[4 * block + j] = gpu::narrow<T>(
        min(fma(width, static_cast<gpu::Compute<T>>(unit_float(random.v[j])), low), below_high));
}

}  // namespace

void gpu::uniform(const Stream& stream, double low, double high, Tensor& y) {
  visit<float, double, bf16>(y.dtype(), "uniform", [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const auto blocks = divide_up<std::int64_t>(y.numel(), 4 * threads);
    const C below_high = std::nextafter(static_cast<C>(high), static_cast<C>(low));
    launch("uniform", uniform_kernel<T>, dim3(static_cast<unsigned>(blocks)), threads, 0, stream,
           static_cast<C>(low), static_cast<C>(high - low), below_high, y.data<T>(), y.numel());
  });
}

}  // namespace ebb
