// Initial values of weights, drawn from default_generator() unless given another; as PyTorch's.
//
// A weight [out, in] or [out, in, kernel…] has fan_in = in · kernel and fan_out = out · kernel:
// the number of terms that meet in one output, or in one input's gradient.
// Errors: `shape` for weights of fewer than 2 dimensions.
// Sources: Glorot & Bengio 2010 (Xavier); He et al. 2015, arXiv:1502.01852 (Kaiming).
#pragma once
#include "ebb/core/random.h"

namespace ebb::nn::init {

struct Fans {
  std::int64_t in;
  std::int64_t out;
};
Fans fans(const Tensor& w);

// The gain to initialise with when (leaky) relu follows: √(2 / (1 + slope²)).
double relu_gain(double slope = 0);

// All write w in place and return it.
Tensor& uniform(Tensor& w, double low, double high, Generator& generator = default_generator());
Tensor& normal(Tensor& w, double mean, double deviation,
               Generator& generator = default_generator());
// Variance gain² / fan_in.
Tensor& kaiming_uniform(Tensor& w, double gain = relu_gain(),
                        Generator& generator = default_generator());
Tensor& kaiming_normal(Tensor& w, double gain = relu_gain(),
                       Generator& generator = default_generator());
// Variance 2 · gain² / (fan_in + fan_out).
Tensor& xavier_uniform(Tensor& w, double gain = 1, Generator& generator = default_generator());
Tensor& xavier_normal(Tensor& w, double gain = 1, Generator& generator = default_generator());

}  // namespace ebb::nn::init
