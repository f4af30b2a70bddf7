#include "ebb/ops/pooling/max_pool1d.h"

#include "ebb/ops/pooling/max_pool2d.h"
#include "ebb/ops/shape/reshape.h"

namespace ebb {
namespace {

// What max_pool2d would say with heights in it.
void check(const Tensor& x, std::int64_t kernel, std::int64_t stride, const MaxPool1dOptions& o) {
  constexpr const char* op = "max_pool1d";
  require_floating(op, "x", x);
  const int r = x.rank();
  require(r == 2 || r == 3, Kind::shape, op, "x must be [N,C,L] or [C,L]", x.shape(),
          "2 or 3 dimensions");
  require(x.shape().product(r - 2, r) > 0, Kind::shape, op, "channels and length must not be 0",
          x.shape(), "1 or more of each");
  require(kernel >= 1, Kind::value, op, "kernel_size out of range", kernel, "1 or more");
  require(stride >= 1, Kind::value, op, "stride out of range", stride, "1 or more");
  require(o.padding >= 0, Kind::value, op, "padding out of range", o.padding, "0 or more");
  require(o.dilation >= 1, Kind::value, op, "dilation out of range", o.dilation, "1 or more");
  require(o.padding <= kernel / 2, Kind::value, op,
          text("padding ", o.padding, " is more than half the kernel"), kernel,
          "padding <= kernel / 2");
}

Shape with_height(const Shape& s) {
  return s.rank() == 2 ? Shape{s[0], 1, s[1]} : Shape{s[0], s[1], 1, s[2]};
}

}  // namespace

Tensor max_pool1d(const Tensor& x, std::int64_t kernel_size, MaxPool1dOptions o) {
  const std::int64_t stride = o.stride.value_or(kernel_size);
  check(x, kernel_size, stride, o);
  const Tensor y = max_pool("max_pool1d", reshape(x, with_height(x.shape())),
                            {Pair(1, kernel_size), Pair(1, stride), Pair(0, o.padding),
                             Pair(1, o.dilation), o.ceil_mode});
  return reshape(y, y.shape().without(y.rank() - 2));
}

}  // namespace ebb
