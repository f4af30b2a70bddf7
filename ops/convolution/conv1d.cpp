#include "ebb/ops/convolution/conv1d.h"

#include "ebb/ops/convolution/conv2d.h"
#include "ebb/ops/shape/reshape.h"

namespace ebb {
namespace {

// What conv2d would say with heights in it.
void check(const Tensor& x, const Tensor& w, const Conv1dOptions& o) {
  require_floating("conv1d", "x", x);
  require_alike("conv1d", "x", x, "w", w);
  require(x.rank() == 3, Kind::shape, "conv1d", "x must be [N,C,L]", x.shape(), "3 dimensions");
  require(w.rank() == 3, Kind::shape, "conv1d", "w must be [K,C/groups,R]", w.shape(),
          "3 dimensions");
  require(x.size(2) > 0, Kind::shape, "conv1d", "the line has a length of 0", x.shape(),
          "a length of at least 1");
  require(w.size(2) > 0, Kind::shape, "conv1d", "the kernel has a side of 0", w.shape(),
          "a length of at least 1");
  require(o.stride >= 1, Kind::value, "conv1d", "stride is too small", o.stride, "at least 1");
  require(o.padding >= 0, Kind::value, "conv1d", "padding is negative", o.padding, "at least 0");
  require(o.dilation >= 1, Kind::value, "conv1d", "dilation is too small", o.dilation,
          "at least 1");
}

Tensor with_height(const Tensor& x) { return reshape(x, {x.size(0), x.size(1), 1, x.size(2)}); }

}  // namespace

Tensor conv1d(const Tensor& x, const Tensor& w, const Tensor& b, Conv1dOptions o) {
  check(x, w, o);
  const Tensor y = convolve("conv1d", with_height(x), with_height(w), b,
                            {Pair(1, o.stride), Pair(0, o.padding), Pair(1, o.dilation), o.groups});
  return reshape(y, {y.size(0), y.size(1), y.size(3)});
}

}  // namespace ebb
