// The three products of a convolution as tiled matrix products over pixels gathered where they lie:
//
//   forward          y[k, (n,p,q)]  = Σ over c,r,s  w[k, (c,r,s)] · x[(c,r,s), (n,p,q)]
//   input gradient   dx[c, (n,h,w)] = Σ over k,r,s  w[(k,r,s), c] · dy[(k,r,s), (n,h,w)]
//   weight gradient  dw[k, (c,r,s)] = Σ over n,p,q  dy[k, (n,p,q)] · x[(n,p,q), (c,r,s)]
//
// The first two are one kernel, gather.cuh; the third is filters.cuh. On tensor cores they are
// gather_mma.cuh and filters_mma.cuh, and without stride on Hopper hopper.cu, float32 without TF32
// too. Groups of few channels are strips.cu's and planes.cu's, windows that hardly overlap
// unfold.cu's, and few products few.cu's.
#include "ebb/core/basic.h"
#include "ebb/ops/channels.cuh"
#include "ebb/ops/convolution/few.h"
#include "ebb/ops/convolution/filters_mma.cuh"
#include "ebb/ops/convolution/gather_mma.cuh"
#include "ebb/ops/convolution/hopper.h"
#include "ebb/ops/convolution/phases.cuh"
#include "ebb/ops/convolution/planes.h"
#include "ebb/ops/convolution/strips.h"
#include "ebb/ops/convolution/unfold.h"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;

template <class T>
struct StoreBias {
  T* db;
  __device__ void operator()(std::int64_t channel, const double (&sum)[1]) const {
    db[channel] = narrow<T>(static_cast<Compute<T>>(sum[0]));
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
  const std::int64_t images = dy.size(0), channels = db.numel();
  visit<float, double, bf16>(dy.dtype(), "conv2d", [&](auto zero) {
    using T = decltype(zero);
    channel_sums<T, 1, 0>("conv2d", InputSums<Compute<T>>{}, StoreBias<T>{db.data<T>()}, images,
                          channels, dy.numel() / images / channels, dy.device(), dy.data<T>());
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
