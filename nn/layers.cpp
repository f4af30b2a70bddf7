#include "ebb/nn/layers.h"

#include <cmath>

#include "ebb/core/error.h"
#include "ebb/nn/init.h"
#include "ebb/ops/linalg/linear.h"
#include "ebb/ops/normalization/batch_norm.h"
#include "ebb/ops/normalization/layer_norm.h"
#include "ebb/ops/normalization/rms_norm.h"
#include "ebb/ops/shape/reshape.h"

namespace ebb::nn {
namespace {

// Uniform in ±1/√fan_in: what PyTorch's Linear and convolutions start from.
Tensor fan_in_uniform(const Shape& shape, std::int64_t fan_in) {
  const double bound = 1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(fan_in, 1)));
  return uniform(shape, -bound, bound, default_generator()).set_requires_grad(true);
}

void require_positive(const char* layer, const char* what, std::int64_t n) {
  require(n >= 1, Kind::value, layer, text("bad ", what), n, "1 or more");
}

}  // namespace

Linear::Linear(std::int64_t in, std::int64_t out, bool with_bias) {
  require_positive("Linear", "in", in);
  require_positive("Linear", "out", out);
  weight = fan_in_uniform({out, in}, in);
  if (with_bias) bias = fan_in_uniform({out}, in);
}

Tensor Linear::forward(const Tensor& x) { return linear(x, weight, bias); }

Tensor Linear::onto(const Tensor& residual, const Tensor& x) {
  return linear(x, weight, bias, residual);
}

Conv2d::Conv2d(std::int64_t in, std::int64_t out, Pair kernel, Conv2dOptions options,
               bool with_bias)
    : options_(options) {
  require_positive("Conv2d", "in", in);
  require_positive("Conv2d", "out", out);
  require_positive("Conv2d", "groups", options.groups);
  require(in % options.groups == 0 && out % options.groups == 0, Kind::value, "Conv2d",
          "groups must divide the channels", text(options.groups, " of ", in, " and ", out),
          "a divisor of both");
  const std::int64_t fan_in = in / options.groups * kernel.h * kernel.w;
  weight = fan_in_uniform({out, in / options.groups, kernel.h, kernel.w}, fan_in);
  if (with_bias) bias = fan_in_uniform({out}, fan_in);
}

Tensor Conv2d::forward(const Tensor& x) { return conv2d(x, weight, bias, options_); }

BatchNorm2d::BatchNorm2d(std::int64_t channels, double eps, double momentum)
    : eps_(eps), momentum_(momentum) {
  require_positive("BatchNorm2d", "channels", channels);
  weight = ones({channels}).set_requires_grad(true);
  bias = zeros({channels}).set_requires_grad(true);
  running_mean = zeros({channels});
  running_var = ones({channels});
}

Tensor BatchNorm2d::forward(const Tensor& x) {
  require(x.rank() == 4, Kind::shape, "BatchNorm2d", "x has the wrong rank", x.shape(),
          "[N,C,H,W]");
  return batch_norm(x, running_mean, running_var, weight, bias,
                    {.training = training(), .momentum = momentum_, .eps = eps_});
}

void BatchNorm2d::parts(Parts& p) {
  p("weight", weight);
  p("bias", bias);
  p.buffer("running_mean", running_mean);
  p.buffer("running_var", running_var);
}

Embedding::Embedding(std::int64_t rows, std::int64_t width, EmbeddingOptions options)
    : options_(options) {
  require_positive("Embedding", "rows", rows);
  require_positive("Embedding", "width", width);
  weight = normal({rows, width}, 0, 1, default_generator()).set_requires_grad(true);
}

LayerNorm::LayerNorm(std::int64_t width, double eps, bool with_bias) : eps_(eps) {
  require_positive("LayerNorm", "width", width);
  weight = ones({width}).set_requires_grad(true);
  if (with_bias) bias = zeros({width}).set_requires_grad(true);
}

Tensor LayerNorm::forward(const Tensor& x) { return layer_norm(x, weight, bias, {.eps = eps_}); }

RMSNorm::RMSNorm(std::int64_t width, double eps) : eps_(eps) {
  require_positive("RMSNorm", "width", width);
  weight = ones({width}).set_requires_grad(true);
}

Tensor RMSNorm::forward(const Tensor& x) { return rms_norm(x, weight, {.eps = eps_}); }

Dropout::Dropout(double p) : p_(p) {
  require(0 <= p && p <= 1, Kind::value, "Dropout", "bad p", p, "[0, 1]");
}

Tensor Dropout::forward(const Tensor& x) {
  if (!training()) return x;
  return dropout(x, {.p = p_, .stream = default_generator().next()});
}

Tensor Flatten::forward(const Tensor& x) { return flatten(x, 1); }

}  // namespace ebb::nn
