#include "mnist/batch.h"

#include "ebb/core/parallel.h"

namespace mnist {

using namespace ebb;

DeviceDigits upload(const Digits& digits, Device device) {
  const std::vector<std::int32_t> labels(digits.labels.begin(), digits.labels.end());
  return {tensor(digits.pixels, {digits.count, side, side}, device),
          tensor(labels, {digits.count}, device)};
}

Batch make_batch(const DeviceDigits& digits, const Tensor& order, std::int64_t first,
                 std::int64_t count, Augment augment) {
  require(0 <= first && 0 <= count && first + count <= order.numel(), Kind::index, "make_batch",
          "batch outside the order", text(first, " to ", first + count),
          text("0 to ", order.numel()));
  const Device device = digits.pixels.device();
  Batch batch{empty({count, 1, side, side}, {Dtype::f32, device}),
              empty({count}, {Dtype::i32, device})};
  run<cpu::gather, gpu::gather>(device, digits, order, first, augment, batch.x, batch.labels);
  return batch;
}

void cpu::gather(const DeviceDigits& digits, const Tensor& order, std::int64_t first,
                 const Augment& augment, Tensor& x, Tensor& labels) {
  const std::int32_t* index = order.data<std::int32_t>() + first;
  ebb::parallel_for(x.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const std::uint8_t* picture =
          digits.pixels.data<std::uint8_t>() + std::int64_t{index[b]} * area;
      const Distortion d = distortion(augment, first + b);
      float* out = x.data<float>() + b * area;
      for (int row = 0; row < side; ++row)
        for (int col = 0; col < side; ++col) *out++ = batch_pixel(picture, d, row, col);
      labels.data<std::int32_t>()[b] = digits.labels.data<std::int32_t>()[index[b]];
    }
  });
}

}  // namespace mnist
