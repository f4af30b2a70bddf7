#include "ebb/ops/convolution/conv2d.h"

namespace ebb {
namespace {

constexpr std::int64_t largest = std::int64_t{1} << 31;  // keeps every size below 2⁶³

void require_options(std::string_view op, const Conv2dOptions& o) {
  const auto within = [](Pair p, std::int64_t low) { return p.h >= low && p.w >= low; };
  const auto small = [](Pair p) { return p.h <= largest && p.w <= largest; };
  require(within(o.stride, 1), Kind::value, op, "stride is too small", o.stride, "at least 1");
  require(within(o.padding, 0), Kind::value, op, "padding is negative", o.padding, "at least 0");
  require(within(o.dilation, 1), Kind::value, op, "dilation is too small", o.dilation,
          "at least 1");
  require(o.groups >= 1, Kind::value, op, "groups are too few", o.groups, "at least 1");
  require(small(o.stride) && small(o.padding) && small(o.dilation), Kind::limit, op,
          "stride, padding or dilation is too large",
          text(o.stride, ", ", o.padding, ", ", o.dilation), text("at most ", largest));
}

void require_channels(std::string_view op, const Tensor& x, const Tensor& w, std::int64_t groups) {
  require(x.rank() == 4, Kind::shape, op, "x must be [N,C,H,W]", x.shape(), "4 dimensions");
  require(w.rank() == 4, Kind::shape, op, "w must be [K,C/groups,R,S]", w.shape(), "4 dimensions");
  require(x.size(2) > 0 && x.size(3) > 0, Kind::shape, op, "the image has a side of 0", x.shape(),
          "sides of at least 1");
  require(w.size(2) > 0 && w.size(3) > 0, Kind::shape, op, "the kernel has a side of 0", w.shape(),
          "sides of at least 1");
  require(w.size(2) <= largest && w.size(3) <= largest, Kind::limit, op, "the kernel is too large",
          w.shape(), text("sides of at most ", largest));
  require(x.size(1) % groups == 0, Kind::value, op, "groups do not divide the input channels",
          text(groups, " groups, ", x.size(1), " channels"), "a divisor");
  require(w.size(0) % groups == 0, Kind::value, op, "groups do not divide the output channels",
          text(groups, " groups, ", w.size(0), " channels"), "a divisor");
  require(x.size(1) / groups == w.size(1), Kind::shape, op, "x and w differ in channels",
          text("input ", x.size(1), ", weight expects ", w.size(1) * groups), "as many");
}

// ⌊(size + 2·padding − dilation·(kernel−1) − 1) / stride⌋ + 1
std::int64_t output_extent(std::string_view op, std::int64_t size, std::int64_t kernel,
                           std::int64_t stride, std::int64_t padding, std::int64_t dilation) {
  const std::int64_t padded = size + 2 * padding;
  const std::int64_t reach = dilation * (kernel - 1) + 1;
  require(reach <= padded, Kind::shape, op, "the kernel is larger than the padded input",
          text("kernel over ", reach, ", input ", padded), "an output of at least 1");
  return (padded - reach) / stride + 1;
}

Conv2dSize checked_size(std::string_view op, const Tensor& x, const Tensor& w, const Tensor& b,
                        const Conv2dOptions& o) {
  require_floating(op, "x", x);
  require_alike(op, "x", x, "w", w);
  require_options(op, o);
  require_channels(op, x, w, o.groups);
  if (b.defined()) {
    require_alike(op, "x", x, "b", b);
    require_shape(op, "b", b, {w.size(0)});
  }
  Conv2dSize size{x.size(0),
                  x.size(1),
                  x.size(2),
                  x.size(3),
                  w.size(0),
                  w.size(2),
                  w.size(3),
                  output_extent(op, x.size(2), w.size(2), o.stride.h, o.padding.h, o.dilation.h),
                  output_extent(op, x.size(3), w.size(3), o.stride.w, o.padding.w, o.dilation.w),
                  o};
  checked_bytes(op, Shape({size.n, size.k, size.p, size.q}, op), size_of(x.dtype()));
  // Forward and backward lay out up to 16 times the padded image.
  const Pair padded{size.h + 2 * o.padding.h, size.w + 2 * o.padding.w};
  const std::int64_t channels = std::max(size.c, size.k);
  checked_bytes(op, Shape({16, channels, padded.h, padded.w}, op), size_of(x.dtype()));
  // A step beyond it is never taken, and shall cost no memory.
  for (Pair* step : {&size.options.stride, &size.options.dilation})
    *step = {std::min(step->h, padded.h), std::min(step->w, padded.w)};
  return size;
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& w, const Tensor& b, Conv2dOptions options) {
  return convolve("conv2d", x, w, b, options);
}

Tensor convolve(const char* op, const Tensor& x, const Tensor& w, const Tensor& b,
                const Conv2dOptions& options) {
  const Conv2dSize size = checked_size(op, x, w, b, options);
  Tensor y = empty({size.n, size.k, size.p, size.q}, x.options());
  run_as_is<cpu::conv2d, gpu::conv2d>(x.device(), size, x, w, b, y);
  const bool dx_wanted = x.requires_grad(), dw_wanted = w.requires_grad();
  const bool db_wanted = b.defined() && b.requires_grad();
  const Shape x_shape = x.shape(), w_shape = w.shape();
  const bool biased = b.defined();
  const std::vector<Tensor> inputs = biased ? std::vector{x, w, b} : std::vector{x, w};
  return record(op, y, inputs,
                [=, x = dw_wanted ? Saved(x) : Saved(),
                 w = dx_wanted ? Saved(w) : Saved()](const Tensor& dy) -> Gradients {
                  Tensor dx, dw, db;
                  if (dw_wanted) dw = empty(w_shape, dy.options());
                  if (db_wanted) db = empty({size.k}, dy.options());
                  if (dx_wanted) dx = empty(x_shape, dy.options());
                  run_as_is<cpu::conv2d_backward, gpu::conv2d_backward>(
                      dy.device(), size, dw_wanted ? x.get() : Tensor(),
                      dx_wanted ? w.get() : Tensor(), dy, dx, dw, db);
                  return biased ? Gradients{dx, dw, db} : Gradients{dx, dw};
                });
}

}  // namespace ebb
