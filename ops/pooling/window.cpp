#include "ebb/ops/pooling/window.h"

namespace ebb {
namespace {

void check_range(std::string_view op, const char* what, Pair value, std::int64_t least) {
  require(value.h >= least && value.w >= least, Kind::value, op, text(what, " out of range"), value,
          text(least, " or more"));
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  require(value.h <= most && value.w <= most, Kind::limit, op, text(what, " out of range"), value,
          text("at most ", most));
}

struct Side {
  std::int64_t extent, kernel, stride, padding, dilation;
};

std::int64_t windows(std::string_view op, const Side& s, bool ceil_mode) {
  const std::int64_t room = s.extent + 2 * s.padding - s.dilation * (s.kernel - 1) - 1;
  require(room >= 0 || (ceil_mode && room + s.stride > 0), Kind::shape, op,
          "the output would be empty: the kernel is larger than the padded input",
          text(s.dilation * (s.kernel - 1) + 1, " on ", s.extent + 2 * s.padding), "a smaller one");
  std::int64_t count = (room + (ceil_mode ? s.stride - 1 : 0)) / s.stride + 1;
  if (ceil_mode && (count - 1) * s.stride >= s.extent + s.padding) --count;
  return count;
}

}  // namespace

PoolSize pool_size(std::string_view op, const Tensor& x, const PoolOptions& o) {
  require_floating(op, "x", x);
  const int r = x.rank();
  require(r == 3 || r == 4, Kind::shape, op, "x must be [N,C,H,W] or [C,H,W]", x.shape(),
          "3 or 4 dimensions");
  require(x.shape().product(r - 3, r) > 0, Kind::shape, op,
          "channels, height and width must not be 0", x.shape(), "1 or more of each");
  check_range(op, "kernel_size", o.kernel, 1);
  check_range(op, "stride", o.stride, 1);
  check_range(op, "padding", o.padding, 0);
  check_range(op, "dilation", o.dilation, 1);
  require(o.padding.h <= o.kernel.h / 2 && o.padding.w <= o.kernel.w / 2, Kind::value, op,
          text("padding ", o.padding, " is more than half the kernel"), o.kernel,
          "padding <= kernel / 2");
  const std::int64_t h = x.size(-2);
  const std::int64_t w = x.size(-1);
  const Side down{h, o.kernel.h, o.stride.h, o.padding.h, o.dilation.h};
  const Side across{w, o.kernel.w, o.stride.w, o.padding.w, o.dilation.w};
  return {x.shape().product(0, r - 2),
          h,
          w,
          windows(op, down, o.ceil_mode),
          windows(op, across, o.ceil_mode),
          o.kernel.h,
          o.kernel.w,
          o.stride.h,
          o.stride.w,
          o.padding.h,
          o.padding.w,
          o.dilation.h,
          o.dilation.w};
}

Shape pool_shape(const Tensor& x, const PoolSize& size) {
  return x.shape().with(x.rank() - 2, size.p).with(x.rank() - 1, size.q);
}

}  // namespace ebb
