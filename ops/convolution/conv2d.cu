// Which way computes a convolution on the GPU: the first that takes it. paths.h says what each is
// for.
//
//   forward          y[k, (n,p,q)]  = Σ over c,r,s  w[k, (c,r,s)] · x[(c,r,s), (n,p,q)]
//   input gradient   dx[c, (n,h,w)] = Σ over k,r,s  w[(k,r,s), c] · dy[(k,r,s), (n,h,w)]
//   weight gradient  dw[k, (c,r,s)] = Σ over n,p,q  dy[k, (n,p,q)] · x[(n,p,q), (c,r,s)]
//
// The first two are one kernel each way, as both gather what a point of the result sees; files end
// in _convolve then, and in _weights for the third.
#include "ebb/core/basic.h"
#include "ebb/ops/channels.cuh"
#include "ebb/ops/convolution/paths.h"

namespace ebb {
namespace {

using namespace gpu;

constexpr Convolve* convolutions[] = {
    few::convolve,        // few products
    strips::convolve,     // depthwise, with the kernels that networks have
    planes::convolve,     // other groups of few channels
    pointwise::convolve,  // one tap
    unfolded::convolve,   // windows that hardly overlap, and pixels that pointwise leaves
    phases::convolve,     // the input gradient of a stride
    hopper::convolve,     // no stride, on Hopper's tensor cores
    mma::convolve,        // on tensor cores
    tiles::convolve,      // everything
};
constexpr WeightGradient* weight_gradients[] = {
    few::weight_gradient,      planes::weight_gradient, pointwise::weight_gradient,
    unfolded::weight_gradient, hopper::weight_gradient, mma::weight_gradient,
    tiles::weight_gradient,
};

void convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
              const Tensor& bias, Tensor& out) {
  if (out.numel() == 0) return;
  for (Convolve* way : convolutions)
    if (way(size, transposed, in, weight, bias, out)) return;
}

void weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw) {
  for (WeightGradient* way : weight_gradients)
    if (way(size, x, dy, dw)) return;
}

template <class T>
struct StoreBias {
  T* db;
  __device__ void operator()(std::int64_t channel, const double (&sum)[1]) const {
    db[channel] = narrow<T>(static_cast<Compute<T>>(sum[0]));
  }
};

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
  convolve(size, false, x, w, b, y);
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
  if (wanted(dx)) convolve(size, true, dy, w, {}, dx);
}

}  // namespace ebb
