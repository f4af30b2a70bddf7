// The layers of convolutional nets and transformers, with PyTorch's names, defaults and initial
// values.
#pragma once
#include "ebb/core/random.h"
#include "ebb/nn/module.h"
#include "ebb/ops/convolution/conv2d.h"
#include "ebb/ops/elementwise/dropout.h"
#include "ebb/ops/elementwise/gelu.h"
#include "ebb/ops/elementwise/mish.h"
#include "ebb/ops/elementwise/relu.h"
#include "ebb/ops/elementwise/silu.h"
#include "ebb/ops/elementwise/tanh.h"
#include "ebb/ops/pooling/avg_pool2d.h"
#include "ebb/ops/pooling/max_pool2d.h"
#include "ebb/ops/shape/embedding.h"

namespace ebb::nn {

// [..., in] → [..., out]. Weight and bias start uniform in ±1/√in.
class Linear : public Module {
 public:
  Linear(std::int64_t in, std::int64_t out, bool with_bias = true);
  Tensor forward(const Tensor& x) override;
  Tensor onto(const Tensor& residual, const Tensor& x);  // residual + forward(x), in one pass
  void parts(Parts& p) override { p("weight", weight), p("bias", bias); }
  Tensor weight;  // [out, in]
  Tensor bias;    // [out], or undefined
};

// [N, in, H, W] → [N, out, P, Q]. Weight and bias start uniform in ±1/√(in/groups · R · S).
class Conv2d : public Module {
 public:
  Conv2d(std::int64_t in, std::int64_t out, Pair kernel, Conv2dOptions options = {},
         bool with_bias = true);
  Tensor forward(const Tensor& x) override;
  void parts(Parts& p) override { p("weight", weight), p("bias", bias); }
  Tensor weight;  // [out, in/groups, R, S]
  Tensor bias;    // [out], or undefined

 private:
  Conv2dOptions options_;
};

// [N, channels, H, W], each channel normalised over N, H, W: by the batch's statistics in training,
// by the running ones (which start at mean 0, variance 1) in evaluation.
class BatchNorm2d : public Module {
 public:
  explicit BatchNorm2d(std::int64_t channels, double eps = 1e-5, double momentum = 0.1);
  Tensor forward(const Tensor& x) override;
  void parts(Parts& p) override;
  Tensor weight, bias;               // [channels]
  Tensor running_mean, running_var;  // [channels], buffers

 private:
  double eps_;
  double momentum_;
};

// Numbers of rows, i32 of any shape → those rows of a table, [..., width], which starts as standard
// normal numbers.
class Embedding : public Module {
 public:
  Embedding(std::int64_t rows, std::int64_t width, EmbeddingOptions options = {});
  Tensor forward(const Tensor& indices) override { return embedding(indices, weight, options_); }
  void parts(Parts& p) override { p("weight", weight); }
  Tensor weight;  // [rows, width]

 private:
  EmbeddingOptions options_;
};

// [..., width], each row normalised to mean 0 and variance 1, times weight, plus bias.
class LayerNorm : public Module {
 public:
  explicit LayerNorm(std::int64_t width, double eps = 1e-5, bool with_bias = true);
  Tensor forward(const Tensor& x) override;
  void parts(Parts& p) override { p("weight", weight), p("bias", bias); }
  Tensor weight;  // [width], ones at first
  Tensor bias;    // [width], zeros at first, or undefined

 private:
  double eps_;
};

// [..., width], each row divided by its root mean square, times weight.
class RMSNorm : public Module {
 public:
  explicit RMSNorm(std::int64_t width, double eps = 1e-6);
  Tensor forward(const Tensor& x) override;
  void parts(Parts& p) override { p("weight", weight); }
  Tensor weight;  // [width], ones at first

 private:
  double eps_;
};

// Zeroes each element with probability p and scales the rest by 1/(1 − p), in training only. Draws
// a new stream from default_generator() at each call.
class Dropout : public Module {
 public:
  explicit Dropout(double p = 0.5);  // error `value` outside [0, 1]
  Tensor forward(const Tensor& x) override;
  bool active() const { return training() && p_ > 0; }

 private:
  double p_;
};

class MaxPool2d : public Module {
 public:
  explicit MaxPool2d(Pair kernel_size, MaxPool2dOptions options = {})
      : kernel_size_(kernel_size), options_(options) {}
  Tensor forward(const Tensor& x) override { return max_pool2d(x, kernel_size_, options_); }

 private:
  Pair kernel_size_;
  MaxPool2dOptions options_;
};

class AvgPool2d : public Module {
 public:
  explicit AvgPool2d(Pair kernel_size, AvgPool2dOptions options = {})
      : kernel_size_(kernel_size), options_(options) {}
  Tensor forward(const Tensor& x) override { return avg_pool2d(x, kernel_size_, options_); }

 private:
  Pair kernel_size_;
  AvgPool2dOptions options_;
};

// [N, …] → [N, product of the rest].
class Flatten : public Module {
 public:
  Tensor forward(const Tensor& x) override;
};

template <Tensor (*f)(const Tensor&)>
class Activation : public Module {
 public:
  Tensor forward(const Tensor& x) override { return f(x); }
};
using ReLU = Activation<relu>;
using SiLU = Activation<silu>;
using Mish = Activation<mish>;
using Tanh = Activation<tanh>;

class GELU : public Module {
 public:
  explicit GELU(GeluOptions options = {}) : options_(options) {}
  Tensor forward(const Tensor& x) override { return gelu(x, options_); }

 private:
  GeluOptions options_;
};

}  // namespace ebb::nn
