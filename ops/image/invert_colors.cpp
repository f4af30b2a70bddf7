#include "ebb/ops/image/invert_colors.h"

#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/map.h"

namespace ebb {

Tensor invert_colors(const Tensor& x, const InvertOptions& options) {
  constexpr auto op = "invert_colors";
  require_defined(op, "x", x);
  require(x.dtype() != Dtype::i32, Kind::dtype, op, "x is not an image", x.dtype(),
          "f32, f64, bf16 or u8");
  const bool bytes = x.dtype() == Dtype::u8;
  const double max = options.max.value_or(bytes ? 255 : 1);
  require(max > 0 && std::isfinite(max), Kind::value, op, "bad max", max, "a positive number");
  require(!bytes || (max <= 255 && max == std::floor(max)), Kind::value, op, "bad max for u8", max,
          "a whole number, 1 to 255");
  Tensor y = empty_like(x);
  run_as_is<cpu::invert_colors, gpu::invert_colors>(x.device(), x, max, y);
  return record(op, y, {x}, [](const Tensor& dy) -> Gradients { return {neg(dy)}; });
}

void cpu::invert_colors(const Tensor& x, double max, Tensor& y) {
  if (x.dtype() != Dtype::u8) return map(y, x, [max](auto x) { return max - x; });
  const auto* in = x.data<std::uint8_t>();
  auto* out = y.data<std::uint8_t>();
  const auto top = static_cast<std::uint8_t>(max);
  // By value: a byte that is written could be part of what lies behind a reference.
  parallel_for(x.numel(), map_grain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      out[i] = static_cast<std::uint8_t>(top - std::min(top, in[i]));
  });
}

}  // namespace ebb
