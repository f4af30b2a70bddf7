// Convolutions of few products, each output by its definition: `lanes` adjacent threads share its
// terms, so many that the outputs of a small problem fill the GPU.
#include "ebb/ops/convolution/paths.h"

#include "ebb/ops/convolution/geometry.cuh"
#include "ebb/ops/parts.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int few_threads = 128;

// The taps that reach a point of one axis, and the pixels that they read.
struct Reached {
  int taps, tap, tap_step, pixel, pixel_step;
};
__device__ Reached reached(const Side& side, int point) {
  if (!side.transposed)
    return {side.kernel, 0, 1, point * side.stride - side.padding, side.dilation};
  int tap = side.dilation == 1 ? (point + side.padding) % side.stride : 0;
  while (tap < side.classes && (point + side.padding - tap * side.dilation) % side.stride != 0)
    ++tap;
  if (tap >= side.classes) return {};
  return {(side.kernel - tap - 1) / side.period + 1, tap, side.period,
          (point + side.padding - tap * side.dilation) / side.stride,
          -side.period * side.dilation / side.stride};
}

// Over `lanes` adjacent threads, a power of two.
template <class V>
__device__ V add_lanes(V sum, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

template <class T>
__global__ void __launch_bounds__(few_threads)
    convolve_few(const __grid_constant__ Gather g, int lanes, int size, const T* in,
                 const T* weight, const T* bias, T* out) {
  await_previous();
  const int i = static_cast<int>((blockIdx.x * few_threads + threadIdx.x) / lanes);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int w = i % g.w.out, h = i / g.w.out % g.h.out, plane = i / g.w.out / g.h.out;
  const int m = plane % g.m, group = plane / g.m % g.groups, image = plane / g.m / g.groups;
  Compute<T> sum = 0;
  if (i < size) {
    const Reached down = reached(g.h, h), across = reached(g.w, w);
    const T* pixels = in + (std::int64_t{image} * g.groups + group) * g.c * g.in_plane;
    weight += std::int64_t{group} * g.m * g.c * g.h.kernel * g.w.kernel + m * g.m_stride;
    const int taps = down.taps * across.taps;
#pragma unroll 4
    for (int term = lane; term < g.c * taps; term += lanes) {
      const int c = term / taps, u = term % taps / across.taps, v = term % taps % across.taps;
      const int row = down.pixel + u * down.pixel_step, col = across.pixel + v * across.pixel_step;
      if (row < 0 || row >= g.h.in || col < 0 || col >= g.w.in) continue;
      const int tap =
          (down.tap + u * down.tap_step) * g.w.kernel + across.tap + v * across.tap_step;
      sum +=
          widen(pixels[c * g.in_plane + row * g.w.in + col]) * widen(weight[c * g.c_stride + tap]);
    }
  }
  sum = add_lanes(sum, lanes);
  if (i < size && lane == 0) out[i] = narrow<T>(bias ? sum + widen(bias[group * g.m + m]) : sum);
}

template <class T>
__global__ void __launch_bounds__(few_threads)
    weight_gradient_few(const __grid_constant__ Weights g, int lanes, int size, const T* x,
                        const T* dy, T* dw) {
  await_previous();
  const int i = static_cast<int>((blockIdx.x * few_threads + threadIdx.x) / lanes);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int s = i % g.s, r = i / g.s % g.r, c = i / g.s / g.r % g.c, m = i / g.s / g.r / g.c;
  Compute<T> sum = 0;
  if (i < size) {
    const T* pixels = x + (std::int64_t{m / g.m} * g.c + c) * g.x_plane;
    dy += m * g.dy_plane;
    const int h_first = r * g.h_dilation - g.h_padding, w_first = s * g.w_dilation - g.w_padding;
#pragma unroll 4
    for (int term = lane; term < g.pixels; term += lanes) {
      const int q = term % g.q, p = term / g.q % g.p, image = term / g.q / g.p;
      const int h = p * g.h_stride + h_first, w = q * g.w_stride + w_first;
      if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
      sum += widen(pixels[image * g.x_image + h * g.w + w]) *
             widen(dy[image * g.dy_image + p * g.q + q]);
    }
  }
  sum = add_lanes(sum, lanes);
  if (i < size && lane == 0) dw[i] = narrow<T>(sum);
}

// Launchers.

// Not in f64, whose checks are small and are to see the larger kernels.
bool are_few(const Conv2dSize& size, Dtype dtype) {
  constexpr double most = 1 << 21;
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  const double outputs = number(size.n) * number(size.k) * number(size.p) * number(size.q);
  const double terms = number(size.channels_in_group()) * number(size.r) * number(size.s);
  const double pixels = number(size.n) * number(size.c) * number(size.h) * number(size.w);
  return dtype != Dtype::f64 && outputs * terms <= most && pixels <= most;
}

// launch_next() with so many lanes that outputs of `terms` each fill the GPU.
template <class... P, class... A>
void launch_few(void (*kernel)(P...), const auto& g, std::int64_t outputs, std::int64_t terms,
                const A&... arguments) {
  const std::int64_t enough = std::int64_t{multiprocessors()} * 1024;
  int lanes = 1;
  while (lanes < warp_size && 4 * lanes < terms && outputs * lanes < enough) lanes *= 2;
  launch_next(op, kernel, grid_of(op, divide_up<std::int64_t>(outputs * lanes, few_threads)),
              few_threads, g, lanes, outputs, arguments...);
}

}  // namespace

bool few::convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
                   const Tensor& bias, Tensor& out) {
  if (!are_few(size, out.dtype())) return false;
  const Gather g = gather_of(size, transposed);
  const std::int64_t terms =
      std::int64_t{g.c} * g.h.kernel * g.w.kernel / (g.h.classes * g.w.classes);
  visit<float, bf16>(out.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    launch_few(convolve_few<T>, g, out.numel(), terms, in.data<T>(), weight.data<T>(),
               bias.defined() ? bias.data<T>() : nullptr, out.data<T>());
  });
  return true;
}

bool few::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw) {
  if (!are_few(size, dw.dtype())) return false;
  const Weights g = weights_of(size);
  visit<float, bf16>(dw.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    launch_few(weight_gradient_few<T>, g, dw.numel(), g.pixels, x.data<T>(), dy.data<T>(),
               dw.data<T>());
  });
  return true;
}

}  // namespace ebb::gpu
