// The weight gradient of a convolution as a tiled matrix product over pixels:
//
//   dw[m, (c,r,s)] = Σ over n,p,q  dy[m, (n,p,q)] · x[(n,p,q), (c,r,s)]
//
// The sum is long and dw is small, so the sum is cut into slices that fill the machine and are
// added in a fixed order.
#include <algorithm>
#include <cmath>

#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/second_stage.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

// Both loaders: thread t reads pixel t % 8 of a slab in rows t / 8, t / 8 + threads / 8, ….
template <class T, class Tile, int extent>
struct PixelSlab {
  static constexpr int apart = Tile::threads / tile_depth;
  static constexpr int loads = extent / apart;
  static_assert(loads * apart == extent);
  T held[loads];

  __device__ static int lane() { return threadIdx.x % tile_depth; }
  __device__ static int row(int i) { return threadIdx.x / tile_depth + i * apart; }

  template <class S>
  __device__ void put(S& slab) const {
#pragma unroll
    for (int i = 0; i < loads; ++i) slab.at[lane()][row(i)] = widen(held[i]);
  }
};

// dy[m, pixel] for the m from first_m on; `dy` is the group's. A slice's length is an int.
template <class T, class Tile>
class OutputLoader : public PixelSlab<T, Tile, Tile::rows> {
  using Base = PixelSlab<T, Tile, Tile::rows>;

 public:
  __device__ OutputLoader(const Weights& g, const T* dy, int first_m, std::int64_t first,
                          std::int64_t end)
      : g_(g),
        left_(static_cast<int>(end - first) - Base::lane()),
        m_left_(g.m - first_m - Base::row(0)) {
    const std::int64_t pixel = first + Base::lane();
    at_in_plane_ = pixel % g.dy_plane;
    at_ =
        dy + pixel / g.dy_plane * g.dy_image + (first_m + Base::row(0)) * g.dy_plane + at_in_plane_;
  }

  __device__ void fetch() {
    const T* from = at_;
#pragma unroll
    for (int i = 0; i < Base::loads; ++i) {
      this->held[i] = left_ > 0 && i * Base::apart < m_left_ ? *from : T{};
      from += Base::apart * g_.dy_plane;
    }
    left_ -= tile_depth;
    const std::int64_t step = std::int64_t{g_.step_p} * g_.q + g_.step_q;
    at_in_plane_ += step;
    at_ += step + g_.step_n * g_.dy_image;
    if (at_in_plane_ >= g_.dy_plane) {
      at_in_plane_ -= g_.dy_plane;
      at_ += g_.dy_image - g_.dy_plane;
    }
  }

 private:
  const Weights& g_;
  int left_, m_left_;
  std::int64_t at_in_plane_;
  const T* at_;
};

// x at tap (c,r,s) of the window of a pixel, for the columns from first_column on. Taps are int
// offsets into the group's part of an image.
template <class T, class Tile>
class WindowLoader : public PixelSlab<T, Tile, Tile::cols> {
  using Base = PixelSlab<T, Tile, Tile::cols>;

 public:
  __device__ WindowLoader(const Weights& g, const T* x, std::int64_t first_column,
                          std::int64_t first, std::int64_t end)
      : g_(g), left_(static_cast<int>(end - first) - Base::lane()) {
    const std::int64_t pixel = first + Base::lane();
    q_ = static_cast<int>(pixel % g.q);
    p_ = static_cast<int>(pixel / g.q % g.p);
    from_ = x + pixel / g.q / g.p * g.x_image;
#pragma unroll
    for (int i = 0; i < Base::loads; ++i) {
      const std::int64_t column = first_column + Base::row(i);
      s_[i] = static_cast<int>(column % g.s) * g.w_dilation;
      const int r = static_cast<int>(column / g.s % g.r) * g.h_dilation;
      const std::int64_t c = column / g.s / g.r;
      r_[i] = column < g.columns() ? r : outside;
      tap_[i] = static_cast<int>(c * g.x_plane + std::int64_t{r} * g.w + s_[i]);
    }
  }

  __device__ void fetch() {
    const int h = left_ > 0 ? p_ * g_.h_stride - g_.h_padding : outside;
    const int w = q_ * g_.w_stride - g_.w_padding;
    const T* window = from_ + (std::int64_t{h} * g_.w + w);
#pragma unroll
    for (int i = 0; i < Base::loads; ++i) {
      const bool inside = within(h + r_[i], g_.h) && within(w + s_[i], g_.w);
      this->held[i] = inside ? window[tap_[i]] : T{};
    }
    step();
  }

 private:
  // pixel += 8, in the digits (n, p, q).
  __device__ void step() {
    left_ -= tile_depth;
    q_ += g_.step_q;
    p_ += g_.step_p;
    from_ += g_.step_n * g_.x_image;
    if (q_ >= g_.q) {
      q_ -= g_.q;
      ++p_;
    }
    if (p_ >= g_.p) {
      p_ -= g_.p;
      from_ += g_.x_image;
    }
  }

  const Weights& g_;
  int left_, p_, q_;
  const T* from_;
  int r_[Base::loads], s_[Base::loads], tap_[Base::loads];
};

// A tile of one slice: slice i of dw goes to partial + i · (elements of dw).
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, blocks_resident<Tile>)
    add_tile(const __grid_constant__ Weights g, Slices slices, const T* x, const T* dy,
             Compute<T>* partial) {
  using V = Compute<T>;
  __shared__ TileMemory<V, Tile> memory;
  const std::int64_t columns = g.columns();
  BlockIndex block;
  const int first_m = block.next(divide_up(g.m, Tile::rows)) * Tile::rows;
  const std::int64_t first_column =
      std::int64_t{block.next(divide_up<std::int64_t>(columns, Tile::cols))} * Tile::cols;
  const std::int64_t group = block.next(g.groups);
  const std::int64_t slice = block.left;
  const std::int64_t first = slice * slices.length * tile_depth;
  const std::int64_t end = min(first + slices.length * tile_depth, g.pixels);

  OutputLoader<T, Tile> a(g, dy + group * g.m * g.dy_plane, first_m, first, end);
  WindowLoader<T, Tile> b(g, x + group * g.c * g.x_plane, first_column, first, end);
  FmaCore<V, Tile> core;
  const std::int64_t slabs = divide_up<std::int64_t>(end - first, tile_depth);
  multiply_tiles(memory, a, b, core, static_cast<int>(slabs));

  V* const to = partial + ((slice * g.groups + group) * g.m + first_m) * columns + first_column;
  core.for_each([&](int m, int n, const auto& sums) {
    constexpr int width = sizeof(sums.v) / sizeof(V);
    if (first_m + m >= g.m) return;
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (first_column + n + j < columns) to[m * columns + n + j] = sums.v[j];
  });
}

constexpr int direct_threads = 256;

// One element of dw a block, for groups of few channels.
template <class T>
__global__ void __launch_bounds__(direct_threads)
    add_directly(Weights g, const T* x, const T* dy, T* dw) {
  BlockIndex block;
  const int s = block.next(g.s);
  const int r = block.next(g.r);
  const int c = block.next(g.c);
  auto sum = add_terms<Compute<T>>(g, x, dy, block.left, c, r, s, threadIdx.x, direct_threads);
  sum = block_reduce<direct_threads>(sum, Sum{});
  if (threadIdx.x == 0) dw[blockIdx.x] = narrow<T>(sum);
}

// Launchers.

// Its sums are cut to fill the machine, so the number of tiles needs not.
template <class T, class F>
void with_weight_tile(std::int64_t m, std::int64_t n, std::int64_t batches, F f) {
  if constexpr (std::is_same_v<T, double>) {
    f(TileForDouble{});
  } else {
    with_tile<Tile<128, 64, 8, 8>, Tile<64, 64, 8, 8>, Tile<32, 32, 4, 4>>(m, n, batches, 1, f);
  }
}

// Slices to fill the machine, and so that they are exact: of n positive products, sums of m make
// errors of about 1.3 · 2⁻²⁴ m/√n of the whole where they are worst, here of up to 10 · 2⁻²⁴.
template <class T, class Tile>
void launch_weight_gradient(const Weights& g, const Tensor& x, const Tensor& dy, Tensor& dw) {
  using V = Compute<T>;
  const std::int64_t blocks = std::int64_t{divide_up(g.m, Tile::rows)} *
                              divide_up<std::int64_t>(g.columns(), Tile::cols) * g.groups;
  const auto exact = static_cast<std::int64_t>(std::sqrt(static_cast<double>(g.pixels)) / 8);
  const Slices slices(divide_up<std::int64_t>(g.pixels, tile_depth),
                      std::max(exact, enough_blocks<Tile>() / blocks));
  const bool straight = slices.count == 1 && std::is_same_v<T, V>;
  Tensor partial = straight ? dw : empty({slices.count, dw.numel()}, {dtype_of<V>, dw.device()});
  launch(op, add_tile<T, Tile>, grid_of(op, blocks * slices.count), Tile::threads, 0, g, slices,
         x.data<T>(), dy.data<T>(), partial.data<V>());
  if (straight) return;
  launch_add_slices<T>(op, dw.numel(), slices.count, partial, 1, 1, nullptr, dw);
}
}  // namespace

bool tiles::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const Weights g = weights_of(size);
  visit<float, double, bf16>(dw.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    if (thin(g.groups, g.m, g.c) || far(g)) {
      launch(op, add_directly<T>, grid_of(op, dw.numel()), direct_threads, 0, g, x.data<T>(),
             dy.data<T>(), dw.data<T>());
      return;
    }
    with_weight_tile<T>(g.m, g.columns(), g.groups, [&](auto tile) {
      launch_weight_gradient<T, decltype(tile)>(g, x, dy, dw);
    });
  });
  return true;
}

}  // namespace ebb::gpu
