#include "ebb/nn/init.h"

#include <cmath>

#include "ebb/core/autograd.h"
#include "ebb/core/error.h"

namespace ebb::nn::init {
namespace {

Tensor& assign(Tensor& w, const Tensor& values) {
  const NoGrad guard;
  return w.copy_(values);
}

double kaiming_deviation(const Tensor& w, double gain) {
  return gain / std::sqrt(static_cast<double>(fans(w).in));
}

double xavier_deviation(const Tensor& w, double gain) {
  const Fans f = fans(w);
  return gain * std::sqrt(2.0 / static_cast<double>(f.in + f.out));
}

// A uniform distribution on [-b, b] has deviation b / √3.
Tensor& uniform_of_deviation(Tensor& w, double deviation, Generator& generator) {
  const double bound = std::sqrt(3.0) * deviation;
  return uniform(w, -bound, bound, generator);
}

}  // namespace

Fans fans(const Tensor& w) {
  require(w.rank() >= 2, Kind::shape, "init", "fans need 2 dimensions or more", w.shape(),
          "[out, in, …]");
  const std::int64_t kernel = w.shape().product(2, w.rank());
  return {w.size(1) * kernel, w.size(0) * kernel};
}

double relu_gain(double slope) { return std::sqrt(2.0 / (1.0 + slope * slope)); }

Tensor& uniform(Tensor& w, double low, double high, Generator& generator) {
  return assign(w, ebb::uniform(w.shape(), low, high, generator, {w.dtype()}));
}
Tensor& normal(Tensor& w, double mean, double deviation, Generator& generator) {
  return assign(w, ebb::normal(w.shape(), mean, deviation, generator, {w.dtype()}));
}
Tensor& kaiming_uniform(Tensor& w, double gain, Generator& generator) {
  return uniform_of_deviation(w, kaiming_deviation(w, gain), generator);
}
Tensor& kaiming_normal(Tensor& w, double gain, Generator& generator) {
  return normal(w, 0, kaiming_deviation(w, gain), generator);
}
Tensor& xavier_uniform(Tensor& w, double gain, Generator& generator) {
  return uniform_of_deviation(w, xavier_deviation(w, gain), generator);
}
Tensor& xavier_normal(Tensor& w, double gain, Generator& generator) {
  return normal(w, 0, xavier_deviation(w, gain), generator);
}

}  // namespace ebb::nn::init
