#include "ebb/ops/image/rgb_to_grayscale.h"

#include "ebb/ops/map.h"

namespace ebb {

Tensor rgb_to_grayscale(const Tensor& x, const GrayscaleOptions& options) {
  constexpr auto op = "rgb_to_grayscale";
  require_defined(op, "x", x);
  require(x.dtype() != Dtype::i32, Kind::dtype, op, "x is not an image", x.dtype(),
          "f32, f64, bf16 or u8");
  require(x.rank() == 3 || x.rank() == 4, Kind::shape, op, "x must be [N,3,H,W] or [3,H,W]",
          x.shape(), "3 or 4 dimensions");
  const int channel = x.rank() - 3;
  require(x.shape()[channel] == 3, Kind::shape, op, "x must have 3 channels", x.shape(),
          "[N,3,H,W] or [3,H,W]");
  for (const double w : options.weights)
    require(std::isfinite(w), Kind::value, op, "weights must be finite", w, "finite numbers");
  Tensor y = empty(x.shape().with(channel, 1), x.options());
  run_as_is<cpu::rgb_to_grayscale, gpu::rgb_to_grayscale>(x.device(), x, options, y);
  return record(op, y, {x}, [shape = x.shape(), options](const Tensor& dy) -> Gradients {
    Tensor dx = empty(shape, dy.options());
    run_as_is<cpu::rgb_to_grayscale_backward, gpu::rgb_to_grayscale_backward>(dy.device(), dy,
                                                                              options, dx);
    return {dx};
  });
}

namespace {

std::int64_t pixels(const Tensor& x) { return x.size(-1) * x.size(-2); }

// f(begin, end, image) over parts of images of that many pixels.
template <class F>
void for_each_part(std::int64_t images, std::int64_t plane, F&& f) {
  constexpr std::int64_t block = 1 << 13;
  const std::int64_t blocks = (plane + block - 1) / block;
  parallel_for(images * blocks, cpu::map_grain / block, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) {
      const std::int64_t begin = b % blocks * block;
      f(begin, std::min(plane, begin + block), b / blocks);
    }
  });
}

void gray_bytes(const std::uint8_t* x, std::int64_t plane, const std::array<double, 3>& weights,
                std::int64_t begin, std::int64_t end, std::uint8_t* y) {
  const auto [r, g, b] = std::array{static_cast<float>(weights[0]), static_cast<float>(weights[1]),
                                    static_cast<float>(weights[2])};
  for (std::int64_t i = begin; i < end; ++i) {
    const float sum =
        std::fma(b, float(x[2 * plane + i]), std::fma(g, float(x[plane + i]), r * x[i]));
    y[i] = static_cast<std::uint8_t>(std::nearbyint(std::clamp(sum, 0.0f, 255.0f)));
  }
}

}  // namespace

void cpu::rgb_to_grayscale(const Tensor& x, const GrayscaleOptions& options, Tensor& y) {
  const std::int64_t plane = pixels(y);
  const std::int64_t images = plane == 0 ? 0 : y.numel() / plane;
  visit<float, double, bf16, std::uint8_t>(x.dtype(), "rgb_to_grayscale", [&](auto zero) {
    using T = decltype(zero);
    const auto& w = options.weights;
    for_each_part(images, plane, [&](std::int64_t begin, std::int64_t end, std::int64_t image) {
      const T* from = x.data<T>() + 3 * image * plane;
      T* to = y.data<T>() + image * plane;
      if constexpr (std::is_same_v<T, std::uint8_t>) {
        gray_bytes(from, plane, w, begin, end, to);
      } else {
        using V = Simd<Wide<T>>;
        const auto weighted = [r = V(w[0]), g = V(w[1]), b = V(w[2])](auto x, auto y, auto z) {
          return x * r + y * g + z * b;
        };
        map_row(to + begin, end - begin, weighted, from + begin, from + plane + begin,
                from + 2 * plane + begin);
      }
    });
  });
}

void cpu::rgb_to_grayscale_backward(const Tensor& dy, const GrayscaleOptions& options, Tensor& dx) {
  const std::int64_t plane = pixels(dy);
  const std::int64_t images = plane == 0 ? 0 : dy.numel() / plane;
  visit<float, double, bf16>(dy.dtype(), "rgb_to_grayscale", [&](auto zero) {
    using T = decltype(zero);
    for_each_part(images, plane, [&](std::int64_t begin, std::int64_t end, std::int64_t image) {
      for (int c = 0; c < 3; ++c)
        map_row(
            dx.data<T>() + (3 * image + c) * plane + begin, end - begin,
            [w = Simd<Wide<T>>(options.weights[c])](auto dy) { return dy * w; },
            dy.data<T>() + image * plane + begin);
    });
  });
}

}  // namespace ebb
