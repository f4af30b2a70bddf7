// The three products of a convolution as tiled matrix products over pixels gathered where they lie:
//
//   forward          y[k, (n,p,q)]  = Σ over c,r,s  w[k, (c,r,s)] · x[(c,r,s), (n,p,q)]
//   input gradient   dx[c, (n,h,w)] = Σ over k,r,s  w[(k,r,s), c] · dy[(k,r,s), (n,h,w)]
//   weight gradient  dw[k, (c,r,s)] = Σ over n,p,q  dy[k, (n,p,q)] · x[(n,p,q), (c,r,s)]
//
// The first two are one kernel, gather.cuh; the third is filters.cuh. On tensor cores they are
// gather_mma.cuh and filters_mma.cuh, and without stride on Hopper hopper.cu, float32 without TF32
// too. Where there are many products for each pixel, gather_line.cuh and filters_line.cuh compute
// them in float32 elsewhere. Groups of few channels are strips.cu's and
// planes.cu's, windows that hardly overlap
// unfold.cu's, and few products few.cu's.
#include "ebb/core/basic.h"
#include "ebb/ops/convolution/few.h"
#include "ebb/ops/convolution/filters_line.cuh"
#include "ebb/ops/convolution/filters_mma.cuh"
#include "ebb/ops/convolution/gather_line.cuh"
#include "ebb/ops/convolution/gather_mma.cuh"
#include "ebb/ops/convolution/hopper.h"
#include "ebb/ops/convolution/phases.cuh"
#include "ebb/ops/convolution/planes.h"
#include "ebb/ops/convolution/strips.h"
#include "ebb/ops/convolution/unfold.h"
#include "ebb/ops/parts.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;

// The first stage of the bias gradient, or both: one slice of the images of one channel a block, in
// packs of a plane, which has `plane` of them.
template <class T, int width>
__global__ void __launch_bounds__(direct_threads)
    sum_channel(std::int64_t images, std::int64_t channels, std::int64_t plane,
                std::int64_t slice_images, std::int64_t slices, const Pack<T, width>* dy,
                double* part, T* db) {
  await_previous();
  const std::int64_t channel = blockIdx.x % channels;
  const std::int64_t slice = blockIdx.x / channels;
  const std::int64_t begin = slice * slice_images;
  const std::int64_t count = min(slice_images, images - begin) * plane;
  std::int64_t image = threadIdx.x / plane;
  std::int64_t at = threadIdx.x % plane;
  Compute<T> sum = 0;
  const Pack<T, width>* from = dy + (begin * channels + channel) * plane;
#pragma unroll 8
  for (std::int64_t i = threadIdx.x; i < count; i += direct_threads) {
    const Pack<T, width> pack = from[image * channels * plane + at];
#pragma unroll
    for (int j = 0; j < width; ++j) sum += widen(pack.v[j]);
    image += direct_threads / plane;
    at += direct_threads % plane;
    if (at >= plane) {
      at -= plane;
      ++image;
    }
  }
  sum = block_reduce<direct_threads>(sum, Sum{});
  if (threadIdx.x > 0) return;
  if (db) {
    db[channel] = narrow<T>(sum);
  } else {
    part[channel * slices + slice] = sum;
  }
}

template <class T>
struct StoreBias {
  T* db;
  __device__ void operator()(std::int64_t channel, double sum) const {
    db[channel] = narrow<T>(static_cast<Compute<T>>(sum));
  }
};

// What needs no tiles of its own. Whether it did.
bool run_special(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
                 const Tensor& bias, Tensor& out) {
  return out.numel() == 0 || few::convolve(size, transposed, in, weight, bias, out) ||
         strips::convolve(size, transposed, in, weight, bias, out) ||
         planes::convolve(size, transposed, in, weight, bias, out) ||
         unfolded::convolve(size, transposed, in, weight, bias, out);
}

void run(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
         const Tensor& bias, Tensor& out) {
  constexpr std::string_view op = "conv2d";
  if (run_special(size, transposed, in, weight, bias, out) ||
      hopper::convolve(size, transposed, in, weight, bias, out))
    return;
  const Gather g = gather_of(op, size, transposed);
  if (gaps(g)) gpu::fill(0, out);
  if (run_gather_mma(op, g, in, weight, bias, out)) return;
  if (run_gather_line(op, g, in, weight, bias, out)) return;
  run_gather(op, g, in, weight, bias, out);
}

void input_gradient(const Conv2dSize& size, const Tensor& w, const Tensor& dy, Tensor& dx) {
  const auto forward = [](const Conv2dSize& phased, const Tensor& x, const Tensor& weight,
                          Tensor& y) { run(phased, false, x, weight, {}, y); };
  if (run_special(size, true, dy, w, {}, dx) || run_phases("conv2d", size, w, dy, dx, forward))
    return;
  run(size, true, dy, w, {}, dx);
}

void weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw) {
  constexpr std::string_view op = "conv2d";
  if (few::weight_gradient(size, x, dy, dw) || planes::weight_gradient(size, x, dy, dw) ||
      unfolded::weight_gradient(size, x, dy, dw) || hopper::weight_gradient(size, x, dy, dw))
    return;
  const Weights g = weights_of(op, size);
  if (!far(g) && run_weight_gradient_mma(op, g, size.n, x, dy, dw)) return;
  if (run_weight_gradient_line(op, size, x, dy, dw)) return;
  visit<float, double, bf16>(dw.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    if (thin(g.groups, g.m, g.c) || far(g)) {
      launch(op, weight_gradient_direct<T>, grid_of(op, dw.numel()), direct_threads, 0, g,
             x.data<T>(), dy.data<T>(), dw.data<T>());
      return;
    }
    with_weight_tile<T>(g.m, g.columns(), g.groups, [&](auto tile) {
      launch_weight_gradient<T, decltype(tile)>(op, g, x, dy, dw);
    });
  });
}

void bias_gradient(const Tensor& dy, Tensor& db) {
  constexpr std::string_view op = "conv2d";
  const std::int64_t channels = db.numel();
  const std::int64_t images = dy.size(0);
  const std::int64_t plane = dy.numel() / images / channels;
  constexpr std::int64_t share = 16 * direct_threads;  // elements a block
  const std::int64_t fill = divide_up<std::int64_t>(8 * multiprocessors(), channels);
  const std::int64_t wanted =
      std::clamp<std::int64_t>(images * plane / share, 1, std::min(fill, images));
  const std::int64_t slice_images = divide_up(images, wanted);
  const std::int64_t slices = divide_up(images, slice_images);
  visit<float, double, bf16>(dy.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    Tensor part = empty({channels, slices}, {Dtype::f64, dy.device()});
    const auto sum_packs = [&](auto count) {
      constexpr int width = decltype(count)::value;
      launch_next(op, sum_channel<T, width>, grid_of(op, slices * channels), direct_threads, images,
                  channels, plane / width, slice_images, slices,
                  reinterpret_cast<const Pack<T, width>*>(dy.data<T>()), part.data<double>(),
                  slices == 1 ? db.data<T>() : nullptr);
    };
    if (plane % pack_size<T> == 0) {
      sum_packs(std::integral_constant<int, pack_size<T>>{});
    } else {
      sum_packs(std::integral_constant<int, 1>{});
    }
    if (slices > 1)
      add_parts(op, StoreBias<T>{db.data<T>()}, channels, slices, part.data<double>());
  });
}

}  // namespace

void gpu::conv2d(const Conv2dSize& size, const Tensor& x, const Tensor& w, const Tensor& b,
                 Tensor& y) {
  run(size, false, x, w, b, y);
}

void gpu::conv2d_backward(const Conv2dSize& size, const Tensor& x, const Tensor& w,
                          const Tensor& dy, Tensor& dx, Tensor& dw, Tensor& db) {
  const auto wanted = [](const Tensor& t) { return t.defined() && t.numel() > 0; };
  if (dy.numel() == 0) {
    for (Tensor* t : {&dx, &dw, &db})
      if (wanted(*t)) fill(0, *t);
    return;
  }
  if (wanted(dw) && strips::backward(size, x, w, dy, dx, dw, db)) return;
  // First of all, as a small dy then stays in the cache for the others.
  if (wanted(db)) bias_gradient(dy, db);
  if (wanted(dw)) weight_gradient(size, x, dy, dw);
  if (wanted(dx)) input_gradient(size, w, dy, dx);
}

}  // namespace ebb
