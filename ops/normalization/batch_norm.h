// batch_norm(x) = (x − μ) · r · weight + bias,  r = 1 / √(σ² + ε), for each channel
//                                              shapes: x [N,C], [N,C,L] or [N,C,H,W]; others [C]
// training: μ and σ² are of the batch (σ² divided by the count m), and the running ones move:
//   running ← (1 − momentum) · running + momentum · batch, with the variance divided by m − 1.
// otherwise: μ and σ² are the running ones.
// dweight = Σ dy · x̂,  dbias = Σ dy,  x̂ = (x − μ) · r
// dx = weight · r · (dy − (dbias + x̂ · dweight) / m) in training, else weight · r · dy
//
// weight and bias may be undefined: 1 and 0. The running tensors are f32 or of x's dtype; training
// writes to them. The variance is of differences from the mean, never Σx² − (Σx)².
// Errors: `shape` (ranks and lengths), `dtype`, `device`, `value` for one value a channel in
// training, eps negative or NaN, momentum outside [0,1]. On the CPU also for a negative running
// variance; on the GPU that gives NaN, since looking at it would wait for the device.
// Source: Ioffe & Szegedy 2015, arXiv:1502.03167. Journal days 14 and 23.
#pragma once
#include "ebb/ops/ops.h"

namespace ebb {

struct BatchNormOptions {
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
};

Tensor batch_norm(const Tensor& x, Tensor running_mean, Tensor running_var, const Tensor& weight,
                  const Tensor& bias, BatchNormOptions options = {});

// x as [samples, channels, plane]; [N,C] has planes of 1.
struct Planes {
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t plane;

  std::int64_t count() const { return samples * plane; }  // values of one channel
};

// Training's y, what backward needs to know (mean and inverse standard deviation, f32, or f64 for
// f64), and the moved running statistics.
using BatchNormTrain = void(const Tensor& x, const Planes& planes, const BatchNormOptions& options,
                            const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                            Tensor& running_var, Tensor& mean, Tensor& inverse, Tensor& y);
// mean and inverse out of training, and y by them.
using BatchNormRunning = void(const Tensor& running_mean, const Tensor& running_var, double eps,
                              Tensor& mean, Tensor& inverse);
using BatchNormApply = void(const Tensor& x, const Planes& planes, const Tensor& mean,
                            const Tensor& inverse, const Tensor& weight, const Tensor& bias,
                            Tensor& y);
// Σ dy and Σ dy · x̂, of mean's dtype; the same as dbias and dweight, of x's where that is another;
// and dx. Any may be undefined, but the sums not in training.
using BatchNormBackward = void(const Tensor& x, const Tensor& dy, const Planes& planes,
                               const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                               bool training, Tensor& sum_dy, Tensor& sum_dy_x, Tensor& dbias,
                               Tensor& dweight, Tensor& dx);
namespace cpu {
BatchNormTrain batch_norm_train;
BatchNormRunning batch_norm_running;
BatchNormApply batch_norm_apply;
BatchNormBackward batch_norm_backward;
}  // namespace cpu
namespace gpu {
BatchNormTrain batch_norm_train;
BatchNormRunning batch_norm_running;
BatchNormApply batch_norm_apply;
BatchNormBackward batch_norm_backward;
}  // namespace gpu

}  // namespace ebb
