// filters.cuh's product in float32 over lines (line.cuh): a thread reads four channels of a pixel
// at once, and x at a tap without asking whether it is inside.
//
//   dw[m, (chunk of c, tap, c)] = Σ over n,p,q  dy[m, (n,p,q)] · x[(n,p,q), (chunk of c, tap, c)]
#pragma once
#include "ebb/ops/convolution/filters_mma.cuh"
#include "ebb/ops/convolution/line.cuh"

namespace ebb::gpu::convolution {

struct LineWeights {
  Line x, dy;  // dy's has no zeros between images
  int groups, filters, m_chunks, c_chunks, p, q, h_stride, w_stride;
  std::int64_t pixels;
  int step_q, step_p, step_n;  // a slab's depth in the digits (n, p, q)
  __host__ __device__ int taps() const { return x.h_taps * x.w_taps; }
  __host__ __device__ std::int64_t columns() const { return std::int64_t{c_chunks} * taps() * 4; }
};

// Both loaders: thread t reads pixel t % 8 of a slab, in chunks t / 8, t / 8 + threads / 8, ….
template <class Tile, int extent>
struct ChunkSlab {
  static constexpr int width = pack_size<float>;
  static constexpr int apart = Tile::threads / tile_depth;
  static constexpr int loads = extent / width / apart;
  static_assert(loads * apart * width == extent);
  Chunk<float> held[loads];

  __device__ static int lane() { return threadIdx.x % tile_depth; }
  __device__ static int chunk(int i) { return threadIdx.x / tile_depth + i * apart; }

  template <class S>
  __device__ void put(S& slab) const {
#pragma unroll
    for (int i = 0; i < loads; ++i)
      *reinterpret_cast<Chunk<float>*>(&slab.at[lane()][chunk(i) * width]) = held[i];
  }
};

// dy[m, pixel] from pixel `first` on; chunks beyond the last are those of the last.
template <class Tile>
class DyLineLoader : public ChunkSlab<Tile, Tile::rows> {
  using Base = ChunkSlab<Tile, Tile::rows>;

 public:
  __device__ DyLineLoader(const LineWeights& g, const Chunk<float>* dy, int first_m,
                          std::int64_t first) {
#pragma unroll
    for (int i = 0; i < Base::loads; ++i)
      from_[i] = dy + min(first_m / Base::width + Base::chunk(i), g.m_chunks - 1) * g.dy.size +
                 first + Base::lane();
  }
  __device__ void fetch() {
#pragma unroll
    for (int i = 0; i < Base::loads; ++i) {
      this->held[i] = *from_[i];
      from_[i] += tile_depth;
    }
  }

 private:
  const Chunk<float>* from_[Base::loads];
};

// x at a tap of the window of a pixel. Pixels beyond the last read the zeros after it.
template <class Tile>
class XLineLoader : public ChunkSlab<Tile, Tile::cols> {
  using Base = ChunkSlab<Tile, Tile::cols>;

 public:
  __device__ XLineLoader(const LineWeights& g, const Chunk<float>* x, std::int64_t first_column,
                         std::int64_t first)
      : g_(g), left_(g.pixels - first - Base::lane()) {
    const std::int64_t pixel = first + Base::lane();
    q_ = static_cast<int>(pixel % g.q);
    p_ = static_cast<int>(pixel / g.q % g.p);
    at_ = (pixel / g.q / g.p * g.x.height + std::int64_t{p_} * g.h_stride) * g.x.width +
          std::int64_t{q_} * g.w_stride;
#pragma unroll
    for (int i = 0; i < Base::loads; ++i) {
      const std::int64_t column =
          min(first_column / Base::width + Base::chunk(i), std::int64_t{g.c_chunks} * g.taps() - 1);
      const int tap = static_cast<int>(column % g.taps());
      from_[i] = x + column / g.taps() * g.x.size + g.x.first + tap / g.x.w_taps * g.x.h_step +
                 tap % g.x.w_taps * g.x.w_step;
    }
  }

  __device__ void fetch() {
    const std::int64_t at = left_ > 0 ? at_ : g_.x.points();
#pragma unroll
    for (int i = 0; i < Base::loads; ++i) this->held[i] = from_[i][at];
    step();
  }

 private:
  // pixel += 8, in the digits (n, p, q).
  __device__ void step() {
    const int h_step = g_.h_stride * g_.x.width;
    left_ -= tile_depth;
    q_ += g_.step_q;
    p_ += g_.step_p;
    at_ += g_.step_n * std::int64_t{g_.x.height} * g_.x.width + std::int64_t{g_.step_p} * h_step +
           g_.step_q * g_.w_stride;
    if (q_ >= g_.q) {
      q_ -= g_.q;
      ++p_;
      at_ += h_step - std::int64_t{g_.q} * g_.w_stride;
    }
    if (p_ >= g_.p) {
      p_ -= g_.p;
      at_ += std::int64_t{g_.x.height} * g_.x.width - std::int64_t{g_.p} * h_step;
    }
  }

  const LineWeights& g_;
  std::int64_t left_, at_;
  int p_, q_;
  const Chunk<float>* from_[Base::loads];
};

// A tile of one slice: partial [slice, group, filter, chunk of c, tap, c in the chunk].
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, blocks_resident<Tile>)
    weight_gradient_line(const __grid_constant__ LineWeights g, Slices slices,
                         const Chunk<float>* x, const Chunk<float>* dy, float* partial) {
  __shared__ TileMemory<float, Tile> memory;
  const std::int64_t columns = g.columns();
  BlockIndex block;
  const int first_m = block.next(divide_up(g.filters, Tile::rows)) * Tile::rows;
  const std::int64_t first_column =
      std::int64_t{block.next(divide_up<std::int64_t>(columns, Tile::cols))} * Tile::cols;
  const std::int64_t group = block.next(g.groups);
  const std::int64_t slice = block.left;
  const std::int64_t first = slice * slices.length * tile_depth;
  const std::int64_t slabs = min(slices.length, (g.dy.size - first) / tile_depth);

  DyLineLoader<Tile> a(g, dy + group * g.m_chunks * g.dy.size, first_m, first);
  XLineLoader<Tile> b(g, x + group * g.c_chunks * g.x.size, first_column, first);
  FmaCore<float, Tile> core;
  multiply_tiles(memory, a, b, core, static_cast<int>(slabs));

  float* const to =
      partial + ((slice * g.groups + group) * g.filters + first_m) * columns + first_column;
  core.for_each([&](int m, int n, const auto& sums) {
    if (first_m + m < g.filters && first_column + n < columns)
      *reinterpret_cast<std::remove_cvref_t<decltype(sums)>*>(to + m * columns + n) = sums;
  });
}

// Launchers.

template <class Tile>
void launch_weight_gradient_line(std::string_view op, const Weights& whole, const LineWeights& g,
                                 const Tensor& x_line, const Tensor& dy_line, const Tensor& x,
                                 const Tensor& dy, Tensor& dw) {
  const std::int64_t columns = g.columns();
  const std::int64_t blocks = std::int64_t{divide_up(g.filters, Tile::rows)} *
                              divide_up<std::int64_t>(columns, Tile::cols) * g.groups;
  const std::int64_t accurate = divide_up<std::int64_t>(g.pixels, 4096);
  const Slices slices(g.dy.size / tile_depth, std::max(accurate, enough_blocks<Tile>() / blocks));
  const std::int64_t size = g.groups * g.filters * columns;
  Tensor partial = empty({slices.count, size}, {Dtype::f32, dw.device()});
  launch(op, weight_gradient_line<Tile>, grid_of(op, blocks * slices.count), Tile::threads, 0, g,
         slices, chunks_of<float>(x_line), chunks_of<float>(dy_line), partial.data<float>());
  launch_add_filter_slices<float>(op, whole, slices.count, g.c_chunks, partial, x, dy, dw);
}

inline LineWeights line_weights(std::string_view op, const Conv2dSize& size) {
  const Gather g = gather_of(op, size, false);
  const Weights whole = weights_of(op, size);
  LineWeights lines{};
  lines.x = line_of(g, tile_depth);
  lines.x.size += tile_depth;
  lines.dy.images = size.n;
  lines.dy.height = whole.p;
  lines.dy.width = whole.q;
  lines.dy.size = round_up(whole.pixels, tile_depth);
  lines.groups = whole.groups;
  lines.filters = whole.m;
  lines.m_chunks = divide_up(whole.m, pack_size<float>);
  lines.c_chunks = divide_up(whole.c, pack_size<float>);
  lines.p = whole.p;
  lines.q = whole.q;
  lines.h_stride = whole.h_stride;
  lines.w_stride = whole.w_stride;
  lines.pixels = whole.pixels;
  lines.step_q = whole.step_q;
  lines.step_p = whole.step_p;
  lines.step_n = whole.step_n;
  return lines;
}

// Where there are so many products for each pixel that packing it is worth it. Whether it did.
inline bool run_weight_gradient_line(std::string_view op, const Conv2dSize& size, const Tensor& x,
                                     const Tensor& dy, Tensor& dw) {
  const Gather whole = gather_of(op, size, false);
  constexpr std::int64_t enough = 256;  // products for each number that is packed
  const std::int64_t taps = size.r * size.s;
  if (dw.dtype() != Dtype::f32 || whole.c < tile_depth || whole.m < tile_depth ||
      std::int64_t{whole.m} * whole.c * taps < enough * (whole.m + whole.c) || !line_fits(whole) ||
      !worth_packing(dy.numel() * whole.c * taps))
    return false;
  const LineWeights g = line_weights(op, size);
  Tensor x_line = empty_line<float>(g.x, g.groups, g.c_chunks, x);
  Tensor dy_line = empty_line<float>(g.dy, g.groups, g.m_chunks, dy);
  pack(op,
       line_packer<float, Form::as_is>(g.x, g.groups, whole.c, g.c_chunks, whole.h.in, whole.w.in,
                                       x, x_line),
       line_packer<float, Form::as_is>(g.dy, g.groups, whole.m, g.m_chunks, g.p, g.q, dy, dy_line));
  with_tile<Tile<64, 192, 8, 12>, Tile<128, 64, 8, 8>, Tile<64, 64, 8, 8>>(
      g.filters, g.columns(), g.groups, 1, [&](auto tile) {
        launch_weight_gradient_line<decltype(tile)>(op, weights_of(op, size), g, x_line, dy_line, x,
                                                    dy, dw);
      });
  return true;
}

}  // namespace ebb::gpu::convolution
