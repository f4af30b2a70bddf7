// gather.cuh's product in float32 over lines (line.cuh).
#pragma once
#include "ebb/ops/convolution/gather_mma.cuh"
#include "ebb/ops/convolution/line.cuh"

namespace ebb::gpu::convolution {

// PixelLoader of `blocked` slabs, from a line: two chunks of four channels a slab and column.
template <class Tile>
class LineLoader {
  static constexpr int width = pack_size<float>;
  static constexpr int chunks = tile_depth / width;
  static constexpr int loads = Tile::cols * chunks / Tile::threads;
  static_assert(loads * Tile::threads == Tile::cols * chunks);

 public:
  static Tensor prepared(std::string_view op, const Gather& g, const Tensor& in) {
    const int all = g.c_packed / width;
    Tensor packed = empty_line<float>(g.line, g.groups, all, in);
    const auto packer =
        line_packer<float, Form::as_is>(g.line, g.groups, g.c, all, g.h.in, g.w.in, in, packed);
    launch(op, pack_one<LinePacker<float, Form::as_is>>, grid_of(op, packer.blocks()), pack_threads,
           0, packer);
    return packed;
  }

  __device__ LineLoader(const Gather& g, const Class& z, const float* pixels, std::int64_t group,
                        std::int64_t first_column, std::int64_t first_slab, std::int64_t* places)
      : h_taps_(z.h.taps), w_taps_(z.w.taps), w_step_(z.w.step) {
    const Line& line = g.line;
    h_step_ = z.h.step * line.width - (w_taps_ - 1) * w_step_;
    c_step_ = chunks * line.size - std::int64_t{h_taps_ - 1} * z.h.step * line.width -
              (w_taps_ - 1) * w_step_;
    const ColumnPoints columns(first_column, std::int64_t{z.h.points} * z.w.points);
    const auto across = static_cast<unsigned>(z.w.points);
    const auto* in = reinterpret_cast<const Chunk<float>*>(pixels) +
                     group * (g.c_packed / width) * line.size - line.before;
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const std::int64_t image = columns.image(column(i));
      const int h = static_cast<int>(columns.point(column(i)) / across);
      const int w = static_cast<int>(columns.point(column(i)) % across);
      const bool real = image < g.images;
      const std::int64_t row = z.h.out_first + std::int64_t{h} * z.h.out_stride;
      const std::int64_t col = z.w.out_first + std::int64_t{w} * z.w.out_stride;
      if (chunk(i) == 0)
        places[column(i)] = real ? (image * g.groups * g.m * g.h.out + row) * g.w.out + col : -1;
      const std::int64_t line_row = (real ? image : 0) * line.height + h * z.h.stride + z.h.first;
      from_[i] = in + chunk(i) * line.size + line_row * line.width + w * z.w.stride + z.w.first;
    }
    const int taps = h_taps_ * w_taps_, tap = static_cast<int>(first_slab % taps);
    u_ = tap / w_taps_;
    v_ = tap % w_taps_;
    at_ = first_slab / taps * chunks * line.size + std::int64_t{u_} * z.h.step * line.width +
          v_ * w_step_;
  }

  __device__ void fetch() {
#pragma unroll
    for (int i = 0; i < loads; ++i) held_[i] = from_[i][at_];
    if (++v_ < w_taps_) {
      at_ += w_step_;
      return;
    }
    v_ = 0;
    if (++u_ < h_taps_) {
      at_ += h_step_;
      return;
    }
    u_ = 0;
    at_ += c_step_;
  }

  template <class S>
  __device__ void put(S& slab) const {
#pragma unroll
    for (int i = 0; i < loads; ++i)
#pragma unroll
      for (int e = 0; e < width; ++e) slab.at[chunk(i) * width + e][column(i)] = held_[i].v[e];
  }

 private:
  __device__ static int column(int i) { return (threadIdx.x + i * Tile::threads) % Tile::cols; }
  __device__ static int chunk(int i) { return (threadIdx.x + i * Tile::threads) / Tile::cols; }

  int h_taps_, w_taps_, u_, v_, w_step_, h_step_;
  std::int64_t c_step_, at_;
  const Chunk<float>* from_[loads];
  Chunk<float> held_[loads];
};

// gather.cuh's product in float32 from lines, where it has so many products for each pixel that
// packing it is worth it. Whether it did.
inline bool run_gather_line(std::string_view op, Gather g, const Tensor& in, const Tensor& weight,
                            const Tensor& bias, Tensor& out) {
  constexpr std::int64_t enough = 1024;  // products for each pixel and channel
  const std::int64_t points = std::int64_t{most_points(g.h)} * most_points(g.w);
  const std::int64_t taps = std::int64_t{g.h.kernel} * g.w.kernel;
  if (out.dtype() != Dtype::f32 || g.m * taps < enough * g.classes() || g.c < tile_depth ||
      !line_fits(g) || !worth_packing(g.images * points * g.groups * g.m * g.c * taps))
    return false;
  set_rows(g, true);
  g.line = line_of(g, 1);
  const float* b = bias.defined() ? bias.data<float>() : nullptr;
  with_tile<Tile<64, 192, 8, 12>, Tile<64, 128, 8, 8>, Tile<64, 64, 8, 8>>(
      g.m, g.images * points, std::int64_t{g.groups} * g.classes(), multiprocessors(),
      [&](auto tile) {
        using Tile = decltype(tile);
        launch_gather<float, Tile, LineLoader<Tile>>(op, g, points, in, weight, b, out);
      });
  return true;
}

}  // namespace ebb::gpu::convolution
