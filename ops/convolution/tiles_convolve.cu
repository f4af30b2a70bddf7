// A convolution read from its outputs, forward and backward, as one tiled matrix product:
//
//   out[image, m, point] = Σ over c, taps of weight[m, c, tap] · in[image, c, point's pixel at tap]
#include "ebb/core/basic.h"
#include "ebb/ops/convolution/geometry.cuh"
#include "ebb/ops/convolution/paths.h"

namespace ebb::gpu {
namespace {

using namespace convolution;

// 32 columns × 8 rows of one class of one group a block.
template <class T>
__global__ void pack_weights(Gather g, std::int64_t row_blocks, const T* weight,
                             Compute<T>* packed) {
  BlockIndex block;
  const std::int64_t m = std::int64_t{block.next(g.columns / 32)} * 32 + threadIdx.x;
  const std::int64_t row = std::int64_t{block.next(row_blocks)} * tile_depth + threadIdx.y;
  const Class z = class_of(g, block.next(g.classes()));
  const std::int64_t group = block.left;
  if (row >= z.slabs * tile_depth) return;
  const std::int64_t taps = std::int64_t{z.h.taps} * z.w.taps;
  const std::int64_t slab = row / tile_depth;
  const bool blocked = g.c_packed % tile_depth == 0;
  const std::int64_t c = blocked ? slab / taps * tile_depth + row % tile_depth : row / taps;
  const std::int64_t tap = blocked ? slab % taps : row % taps;
  const std::int64_t r = z.h.tap_first + tap / z.w.taps * z.h.tap_step;
  const std::int64_t s = z.w.tap_first + tap % z.w.taps * z.w.tap_step;
  Compute<T> value = 0;
  if (m < g.m && c < g.c)
    value = widen(weight[group * g.m * g.c * g.h.kernel * g.w.kernel + m * g.m_stride +
                         c * g.c_stride + r * g.w.kernel + s]);
  packed[(group * g.rows + z.first_row + row) * g.columns + m] = value;
}

// Loads slabs of gathered pixels: column n is a point of an image, k a tap of a channel. A thread
// stays with its columns. Blocked: k = (c / 8, tap, c % 8), so that a slab is one tap of eight
// channels, one bounds test a column. Else k = (c, tap), for few channels.
template <class T, class Tile, bool blocked>
class PixelLoader {
  static constexpr int columns = divide_up(Tile::cols, Tile::threads);
  static constexpr int lanes = divide_up(Tile::threads, Tile::cols);
  static constexpr int loads = tile_depth / lanes;
  static_assert(Tile::cols * lanes == Tile::threads * columns && loads * lanes == tile_depth);

 public:
  // `places[n]` is set to where column n is written, −1 when there is none.
  __device__ PixelLoader(const Gather& g, const Class& z, const T* in, std::int64_t group,
                         std::int64_t first_column, std::int64_t first_slab, std::int64_t* places)
      : g_(g),
        h_taps_(z.h.taps),
        w_taps_(z.w.taps),
        h_step_(z.h.step),
        w_step_(z.w.step),
        lane_(threadIdx.x / Tile::cols) {
    const std::int64_t points = std::int64_t{z.h.points} * z.w.points;
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      const int column = threadIdx.x % Tile::cols + j * Tile::threads;
      const std::int64_t n = first_column + column;
      const std::int64_t image = n / points;
      const bool real = image < g.images;
      const int h = static_cast<int>(n % points / z.w.points);
      const int w = static_cast<int>(n % points % z.w.points);
      h_[j] = real ? h * z.h.stride + z.h.first : outside;
      w_[j] = w * z.w.stride + z.w.first;
      from_[j] = in + (image * g.groups + group) * g.c * g.in_plane;
      const std::int64_t row = z.h.out_first + std::int64_t{h} * z.h.out_stride;
      const std::int64_t col = z.w.out_first + std::int64_t{w} * z.w.out_stride;
      if (lane_ == 0)
        places[column] = real ? (image * g.groups * g.m * g.h.out + row) * g.w.out + col : -1;
    }
    start(first_slab);
  }

  __device__ void fetch() {
    if constexpr (blocked) {
      fetch_tap();
    } else {
      fetch_each();
    }
  }

  template <class S>
  __device__ void put(S& slab) const {
#pragma unroll
    for (int j = 0; j < columns; ++j)
#pragma unroll
      for (int i = 0; i < loads; ++i)
        slab.at[lane_ + i * lanes][threadIdx.x % Tile::cols + j * Tile::threads] =
            widen(held_[j][i]);
  }

 private:
  __device__ void start(std::int64_t slab) {
    const std::int64_t taps = std::int64_t{h_taps_} * w_taps_;
    const std::int64_t k = slab * tile_depth + lane_;
    const std::int64_t tap = blocked ? slab % taps : k % taps;
    c_ = static_cast<int>(blocked ? slab / taps * tile_depth + lane_ : k / taps);
    u_ = static_cast<int>(tap / w_taps_);
    v_ = static_cast<int>(tap % w_taps_);
    lanes_v_ = lanes % w_taps_;
    lanes_u_ = lanes / w_taps_ % h_taps_;
    lanes_c_ = lanes / w_taps_ / h_taps_;
  }

  __device__ void fetch_tap() {
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      const int h = h_[j] + u_ * h_step_;
      const int w = w_[j] + v_ * w_step_;
      const bool inside = within(h, g_.h.in) && within(w, g_.w.in);
      const T* at = from_[j] + (c_ * g_.in_plane + std::int64_t{h} * g_.w.in + w);
#pragma unroll
      for (int i = 0; i < loads; ++i) {
        held_[j][i] = inside && c_ + i * lanes < g_.c ? *at : T{};
        at += lanes * g_.in_plane;
      }
    }
    if (++v_ < w_taps_) return;
    v_ = 0;
    if (++u_ < h_taps_) return;
    u_ = 0;
    c_ += tile_depth;
  }

  __device__ void fetch_each() {
#pragma unroll
    for (int i = 0; i < loads; ++i) {
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        const int h = h_[j] + u_ * h_step_;
        const int w = w_[j] + v_ * w_step_;
        const bool inside = within(h, g_.h.in) && within(w, g_.w.in);
        held_[j][i] =
            inside && c_ < g_.c ? from_[j][c_ * g_.in_plane + std::int64_t{h} * g_.w.in + w] : T{};
      }
      advance();
    }
  }

  // k += lanes, in the digits (c, u, v).
  __device__ void advance() {
    v_ += lanes_v_;
    u_ += lanes_u_;
    c_ += lanes_c_;
    if (v_ >= w_taps_) {
      v_ -= w_taps_;
      ++u_;
    }
    if (u_ >= h_taps_) {
      u_ -= h_taps_;
      ++c_;
    }
  }

  const Gather& g_;
  int h_taps_, w_taps_, h_step_, w_step_;
  int lane_;
  int c_, u_, v_;
  int lanes_c_, lanes_u_, lanes_v_;
  const T* from_[columns];
  int h_[columns], w_[columns];
  T held_[columns][loads];
};

// A tile of out for one slice of the sum; slice i of several goes to out + i · out_size.
template <class T, class Out, class Tile, bool blocked, bool totals>
__global__ void __launch_bounds__(Tile::threads, blocks_resident<Tile>)
    gather(const __grid_constant__ Gather g, Slices slices, std::int64_t column_tiles, int together,
           std::int64_t out_size, const T* in, const Compute<T>* packed, const T* bias, Out* out) {
  using V = Compute<T>;
  __shared__ TileMemory<V, Tile> memory;
  __shared__ std::int64_t places[Tile::cols];
  BlockIndex block;
  const int first_m = block.next(divide_up(g.m, Tile::rows)) * Tile::rows;
  const std::int64_t first_column = std::int64_t{block.next(column_tiles)} * Tile::cols;
  const std::int64_t slice = block.next(slices.count);
  const Class z = class_of(g, block.next(g.classes()));
  const std::int64_t group = block.left;
  if (first_column >= g.images * z.h.points * z.w.points) return;

  const std::int64_t first_slab = min(slice * slices.length, z.slabs);
  const std::int64_t slabs = min(slices.length, z.slabs - first_slab);
  const std::int64_t first_row = group * g.rows + z.first_row + first_slab * tile_depth;
  PackedLoader<V, Tile, Tile::rows> a(packed + first_row * g.columns + first_m, g.columns);
  PixelLoader<T, Tile, blocked> b(g, z, in, group, first_column, first_slab, places);
  FmaCore<V, Tile, totals> core;
  __syncthreads();  // places, even if there is no slab
  multiply_tiles(memory, a, b, core, static_cast<int>(slabs));

  const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
  const std::int64_t first_channel = group * g.m + first_m;
  Out* const to = out + slice * out_size + first_channel * plane;
  core.for_each([&](int m, int n, const auto& sums) {
    if (first_m + m >= g.m) return;
    const V add = bias ? widen(bias[first_channel + m]) : V(0);
    store_columns(to + m * plane, places + n, sums, add, together);
  });
}

// Launchers.

template <class T, bool blocked, class F>
void with_gather_tile(std::int64_t m, std::int64_t n, std::int64_t batches, F f) {
  const int at_once = multiprocessors();
  if constexpr (std::is_same_v<T, double>) {
    f(TileForDouble{});
  } else if constexpr (blocked) {
    with_tile<Tile<128, 128, 8, 8>, Tile<64, 128, 8, 8>, Tile<64, 64, 8, 8>, Tile<32, 128, 8, 8>,
              Tile<16, 256, 4, 8>, Tile<8, 256, 2, 8>, Tile<4, 256, 1, 8>>(m, n, batches, at_once,
                                                                           f);
  } else {
    with_tile<Tile<64, 128, 8, 8>, Tile<64, 64, 8, 8>, Tile<32, 128, 8, 8>, Tile<8, 256, 2, 8>,
              Tile<4, 256, 1, 8>>(m, n, batches, at_once, f);
  }
}

template <class T>
Tensor packed_weights(const Gather& g, const Tensor& weight) {
  Tensor packed = empty({g.groups, g.rows, g.columns}, {dtype_of<Compute<T>>, weight.device()});
  const std::int64_t row_blocks = g.rows / tile_depth;
  const std::int64_t blocks = g.columns / 32 * row_blocks * g.classes() * g.groups;
  launch(op, pack_weights<T>, grid_of(op, blocks), dim3(32, tile_depth), 0, g, row_blocks,
         weight.data<T>(), packed.data<Compute<T>>());
  return packed;
}

template <class T, class Tile, bool blocked>
void launch_gather(Gather g, std::int64_t points, const Tensor& in, const Tensor& weight,
                   const T* bias, Tensor& out) {
  using V = Compute<T>;
  g.columns = round_up(g.m, std::max(Tile::rows, 32));
  const Tensor packed = packed_weights<T>(g, weight);
  const std::int64_t column_tiles = divide_up<std::int64_t>(g.images * points, Tile::cols);
  const std::int64_t blocks = divide_up(g.m, Tile::rows) * column_tiles * g.groups * g.classes();
  const std::int64_t slabs = g.rows / tile_depth - g.classes();  // of all classes
  const Slices slices(slabs + (dense(g) ? 0 : g.classes()),
                      dense(g) ? enough_blocks<Tile>() / blocks : 1);
  const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
  const int together = adjacent_columns(g);
  const dim3 grid = grid_of(op, blocks * slices.count);
  const auto go = [&]<bool totals, class Out>(const T* with_bias, Out* to) {
    launch(op, gather<T, Out, Tile, blocked, totals>, grid, Tile::threads, 0, g, slices,
           column_tiles, together, out.numel(), in.data<T>(), packed.data<V>(), with_bias, to);
  };
  const auto make = [&](const T* with_bias, auto* to) {
    if constexpr (sizeof(V) == 4)
      if (slices.length > longest_sum) return go.template operator()<true>(with_bias, to);
    go.template operator()<false>(with_bias, to);
  };
  if (slices.count == 1) return make(bias, out.data<T>());
  Tensor partial = empty({slices.count, out.numel()}, {dtype_of<V>, out.device()});
  make(nullptr, partial.data<V>());
  launch_add_slices<T>(op, out.numel(), slices.count, partial, plane, g.groups * g.m, bias, out);
}

}  // namespace

bool tiles::convolve(const Conv2dSize& size, bool transposed, const Tensor& in,
                     const Tensor& weight, const Tensor& bias, Tensor& out) {
  constexpr int few = 5;  // channels: eighths of slabs that blocking would waste
  Gather g = gather_of(size, transposed);
  if (gaps(g)) gpu::fill(0, out);
  const bool blocked = g.c > few;
  g.c_packed = static_cast<int>(blocked ? round_up(g.c, tile_depth) : g.c);
  g.rows = round_up(std::int64_t{g.h.kernel} * g.w.kernel * g.c_packed, tile_depth) +
           tile_depth * g.classes();
  const std::int64_t points = std::int64_t{most_points(g.h)} * most_points(g.w);
  visit<float, double, bf16>(out.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const T* b = bias.defined() ? bias.data<T>() : nullptr;
    const std::int64_t batches = std::int64_t{g.groups} * g.classes();
    const auto with_blocking = [&]<bool blocks>() {
      with_gather_tile<T, blocks>(g.m, g.images * points, batches, [&](auto tile) {
        launch_gather<T, decltype(tile), blocks>(g, points, in, weight, b, out);
      });
    };
    if (blocked) {
      with_blocking.template operator()<true>();
    } else {
      with_blocking.template operator()<false>();
    }
  });
  return true;
}

}  // namespace ebb::gpu
