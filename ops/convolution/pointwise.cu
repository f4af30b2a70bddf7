// A kernel of one tap that meets every pixel in its place is one matrix for all images:
//
//   y[n] = w · x[n] + b      dx[n] = wᵀ · dy[n]      dw = Σ over n of dy[n] · x[n]ᵀ
//
// x[n] [channels, pixels].
#include "ebb/core/basic.h"
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/linalg/gemm.h"
#include "ebb/ops/tiles.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

// Not in f64, nor where rows of pixels or of weights begin anywhere, as the library then is slow.
bool fits(const Conv2dSize& z, Dtype dtype) {
  const Conv2dOptions& o = z.options;
  constexpr std::int64_t most = std::int64_t{1} << 30;
  const std::int64_t plane = z.h * z.w;
  return dtype != Dtype::f64 && z.r * z.s * o.stride.h * o.stride.w == 1 &&
         o.padding.h + o.padding.w == 0 && o.groups == 1 && std::min(z.c, z.k) > 0 &&
         std::max({z.c, z.k, plane}) < most && plane % 4 == 0 && z.c % 4 == 0;
}

// Whether what is summed for each image is much less than the operands, and the images are enough
// for the machine, as the library does not cut their sums. TF32 gains nothing.
bool image_by_image(const Conv2dSize& z, Dtype dtype) {
  constexpr std::int64_t tile = 64;
  const std::int64_t tiles = z.n * divide_up(z.k, tile) * divide_up(z.c, tile);
  const std::int64_t enough = dtype == Dtype::bf16 ? 32 : 128;
  return tiles >= enough && !(dtype == Dtype::f32 && tf32_allowed()) &&
         5 * z.k * z.c <= z.h * z.w * (z.k + z.c) * size_of(dtype);
}

}  // namespace

bool pointwise::convolve(const Conv2dSize& z, bool transposed, const Tensor& in, const Tensor& w,
                         const Tensor& bias, Tensor& out) {
  if (!fits(z, out.dtype())) return false;
  const std::int64_t m = transposed ? z.c : z.k, k = transposed ? z.k : z.c;
  gemm_each(op, {z.n, m, z.h * z.w, k, transposed}, w, in, bias, out);
  return true;
}

bool pointwise::weight_gradient(const Conv2dSize& z, const Tensor& x, const Tensor& dy,
                                Tensor& dw) {
  constexpr std::int64_t few = 16;
  if (!fits(z, dw.dtype()) || std::min(z.c, z.k) < few ||
      (z.n > 1 && !image_by_image(z, dw.dtype())))
    return false;
  const GemmSize size{z.n, z.k, z.c, z.h * z.w, false, true};
  visit<float, bf16>(dw.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    if (z.n == 1) return gemm(op, size, dy, x, {}, {}, dw);
    Tensor sums = empty({z.n, dw.numel()}, {dtype_of<Compute<T>>, dw.device()});
    gemm(op, size, dy, x, {}, {}, sums);
    launch_add_slices<T>(op, dw.numel(), z.n, sums, 1, 1, nullptr, dw);
  });
  return true;
}

}  // namespace ebb::gpu
