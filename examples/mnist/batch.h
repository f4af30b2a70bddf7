// Batches made on the device that holds the data set: gathered, slightly distorted, normalised.
// An op outside the library, with its twins: the way to write one's own.
#pragma once
#include <cstdint>

#include "ebb/ebb.h"
#include "mnist/data.h"

namespace mnist {

struct DeviceDigits {
  ebb::Tensor pixels;  // u8 [N,28,28]
  ebb::Tensor labels;  // i32 [N]
};
DeviceDigits upload(const Digits& digits, ebb::Device device);

// Off: pictures as they are. On: each is scaled, sheared and shifted a little at random, by the
// stream and its place in the order.
struct Augment {
  bool on = false;
  ebb::Stream stream{0, 0};
};

struct Batch {
  ebb::Tensor x;       // f32 [count,1,28,28], (pixel / 255 − 0.1307) / 0.3081
  ebb::Tensor labels;  // i32 [count]
};

// Pictures order[first] … order[first + count − 1]; `order` is i32 [N] on the data's device.
// Error `index` when they are not all in the order.
Batch make_batch(const DeviceDigits& digits, const ebb::Tensor& order, std::int64_t first,
                 std::int64_t count, Augment augment);

using Gather = void(const DeviceDigits& digits, const ebb::Tensor& order, std::int64_t first,
                    const Augment& augment, ebb::Tensor& x, ebb::Tensor& labels);
namespace cpu {
Gather gather;
}
namespace gpu {
Gather gather;
}

// Where a pixel of the batch comes from: an affine map about the centre. Multiplications and
// additions only, so that both devices see the same pictures.
struct Distortion {
  float m[2][2] = {{1, 0}, {0, 1}};
  float shift[2] = {0, 0};
};

constexpr Distortion distortion(const Augment& augment, std::int64_t place) {
  if (!augment.on) return {};
  constexpr float scale = 0.1f;   // of the diagonal
  constexpr float shear = 0.15f;  // off the diagonal
  constexpr float pixels = 1.5f;
  const auto at = static_cast<std::uint64_t>(place);
  const ebb::Philox r = ebb::philox(augment.stream.seed, at, augment.stream.index);
  const auto within = [&](int i, float bound) {  // sixteen bits each
    const auto bits = static_cast<float>(r.v[i / 2] >> (16 * (i % 2)) & 0xffffu);
    return bound * (bits * 0x1p-15f - 1.0f);
  };
  return {{{1 + within(0, scale), within(1, shear)}, {within(2, shear), 1 + within(3, scale)}},
          {within(4, pixels), within(5, pixels)}};
}

// Pixel (row, col) of the distorted picture, bilinear, 0 outside; then normalised.
constexpr float batch_pixel(const std::uint8_t* picture, const Distortion& d, int row, int col) {
  constexpr float centre = 13.5f;
  const float u = static_cast<float>(row) - centre;
  const float v = static_cast<float>(col) - centre;
  const float y = centre + d.m[0][0] * u + d.m[0][1] * v + d.shift[0];
  const float x = centre + d.m[1][0] * u + d.m[1][1] * v + d.shift[1];
  const int top = static_cast<int>(y + 64) - 64;  // floor: y stays above −64
  const int left = static_cast<int>(x + 64) - 64;
  const float down = y - static_cast<float>(top);
  const float right = x - static_cast<float>(left);
  const auto at = [&](int r, int c) {
    const bool inside = 0 <= r && r < side && 0 <= c && c < side;
    return inside ? static_cast<float>(picture[r * side + c]) : 0.0f;
  };
  const float ink = (1 - down) * ((1 - right) * at(top, left) + right * at(top, left + 1)) +
                    down * ((1 - right) * at(top + 1, left) + right * at(top + 1, left + 1));
  return (ink / 255.0f - 0.1307f) / 0.3081f;
}

}  // namespace mnist
