#include "ebb/core/cuda.cuh"
#include "ebb/ops/attention/rotary.h"

namespace ebb {
namespace gpu {
namespace {

constexpr int threads = 256;

// One block a position of one sequence: it works out the angles once, for all heads.
template <class T>
__global__ void __launch_bounds__(threads)
    rotary_kernel(const T* x, RotaryLayout s, RotaryOptions options, int turn, T* y) {
  using C = Compute<T>;
  extern __shared__ double memory[];
  C* const cosine = reinterpret_cast<C*>(memory);
  const int pairs = static_cast<int>(s.width / 2);
  C* const sine = cosine + pairs;
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) % s.length;
  const double position = static_cast<double>(options.first + place);
  for (int i = threadIdx.x; i < pairs; i += threads) {
    double c, d;
    sincos(position * pow(options.base, -2.0 * i / static_cast<double>(s.width)), &d, &c);
    cosine[i] = static_cast<C>(c);
    sine[i] = static_cast<C>(turn * d);
  }
  __syncthreads();
  const std::int64_t row = (s.turned + s.kept) * s.width;
  const T* from = x + blockIdx.x * row;
  T* to = y + blockIdx.x * row;
  const std::int64_t all = s.turned * pairs;
  for (std::int64_t k = threadIdx.x; k < all; k += threads) {
    const std::int64_t head = k / pairs;
    const int i = static_cast<int>(k - head * pairs);
    const std::int64_t at = head * s.width + i;
    const C low = widen(from[at]);
    const C high = widen(from[at + pairs]);
    to[at] = narrow<T>(low * cosine[i] - high * sine[i]);
    to[at + pairs] = narrow<T>(high * cosine[i] + low * sine[i]);
  }
  for (std::int64_t k = s.turned * s.width + threadIdx.x; k < row; k += threads) to[k] = from[k];
}

}  // namespace
}  // namespace gpu

void gpu::rotary(const Tensor& x, const RotaryLayout& s, const RotaryOptions& options, int turn,
                 Tensor& y) {
  if (x.numel() == 0) return;
  visit<float, double, bf16>(x.dtype(), "rotary", [&](auto zero) {
    using T = decltype(zero);
    const size_t shared = static_cast<size_t>(s.width) * sizeof(Compute<T>);
    launch("rotary", rotary_kernel<T>, dim3(static_cast<unsigned>(s.batch * s.length)), threads,
           shared, x.data<T>(), s, options, turn, y.data<T>());
  });
}

}  // namespace ebb
