#include "ebb/ops/image/rgb_to_grayscale.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::Pack;
using gpu::pack_size;

constexpr int threads = 256;

template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
struct Weights {
  Real<T> w[3];
  explicit Weights(const GrayscaleOptions& o)
      : w{static_cast<Real<T>>(o.weights[0]), static_cast<Real<T>>(o.weights[1]),
          static_cast<Real<T>>(o.weights[2])} {}
};

template <class T>
__device__ T gray(const Weights<T>& k, T r, T g, T b) {
  using C = Real<T>;
  const C sum = fma(k.w[2], static_cast<C>(gpu::widen(b)),
                    fma(k.w[1], static_cast<C>(gpu::widen(g)), k.w[0] * gpu::widen(r)));
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    return static_cast<T>(rintf(fminf(fmaxf(sum, 0.0f), 255.0f)));
  } else {
    return gpu::narrow<T>(sum);
  }
}

// A block takes one tile of one image: `tiles` of them an image. A thread takes a pack, or one
// pixel when `width` is 1.
template <int width, class T>
__global__ void __launch_bounds__(threads)
    forward_kernel(Weights<T> weights, std::int64_t plane, unsigned tiles, const T* x, T* y) {
  using P = Pack<T, width>;
  const std::int64_t image = blockIdx.x / tiles;
  const std::int64_t i = (std::int64_t{blockIdx.x % tiles} * threads + threadIdx.x) * width;
  if (i >= plane) return;
  P in[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) in[c] = *reinterpret_cast<const P*>(x + (3 * image + c) * plane + i);
  P out;
#pragma unroll
  for (int j = 0; j < width; ++j) out.v[j] = gray<T>(weights, in[0].v[j], in[1].v[j], in[2].v[j]);
  gpu::store(reinterpret_cast<P*>(y + image * plane + i), out);
}

template <int width, class T>
__global__ void __launch_bounds__(threads)
    backward_kernel(Weights<T> weights, std::int64_t plane, unsigned tiles, const T* dy, T* dx) {
  using P = Pack<T, width>;
  const std::int64_t image = blockIdx.x / tiles;
  const std::int64_t i = (std::int64_t{blockIdx.x % tiles} * threads + threadIdx.x) * width;
  if (i >= plane) return;
  const P in = *reinterpret_cast<const P*>(dy + image * plane + i);
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    P out;
#pragma unroll
    for (int j = 0; j < width; ++j) out.v[j] = gpu::narrow<T>(weights.w[c] * gpu::widen(in.v[j]));
    gpu::store(reinterpret_cast<P*>(dx + (3 * image + c) * plane + i), out);
  }
}

// Packs only where every plane starts on 16 bytes.
template <class T>
using Kernel = void (*)(Weights<T>, std::int64_t, unsigned, const T*, T*);

template <class T>
void start(Kernel<T> packs, Kernel<T> single, const GrayscaleOptions& options, std::int64_t images,
           std::int64_t plane, const T* x, T* y) {
  if (images == 0 || plane == 0) return;
  const bool packed = plane % pack_size<T> == 0;
  const std::int64_t tile = std::int64_t{threads} * (packed ? pack_size<T> : 1);
  const auto tiles = static_cast<unsigned>(gpu::divide_up(plane, tile));
  gpu::launch("rgb_to_grayscale", packed ? packs : single,
              dim3(static_cast<unsigned>(images * tiles)), threads, 0, Weights<T>(options), plane,
              tiles, x, y);
}

std::int64_t pixels(const Tensor& x) { return x.size(-1) * x.size(-2); }

}  // namespace

void gpu::rgb_to_grayscale(const Tensor& x, const GrayscaleOptions& options, Tensor& y) {
  if (y.numel() == 0) return;
  visit<float, double, bf16, std::uint8_t>(x.dtype(), "rgb_to_grayscale", [&](auto zero) {
    using T = decltype(zero);
    start<T>(forward_kernel<pack_size<T>, T>, forward_kernel<1, T>, options, y.numel() / pixels(y),
             pixels(y), x.data<T>(), y.data<T>());
  });
}

void gpu::rgb_to_grayscale_backward(const Tensor& dy, const GrayscaleOptions& options, Tensor& dx) {
  if (dy.numel() == 0) return;
  visit<float, double, bf16>(dy.dtype(), "rgb_to_grayscale", [&](auto zero) {
    using T = decltype(zero);
    start<T>(backward_kernel<pack_size<T>, T>, backward_kernel<1, T>, options,
             dy.numel() / pixels(dy), pixels(dy), dy.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
