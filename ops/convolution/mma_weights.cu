// The weight gradient on tensor cores, over dy and x in chunks of their channels, or of pixels
// where they lie, if each pixel of dy is that of x:
//
//   dw[m, (c,r,s)] = Σ over n,p,q  dy[m, (n,p,q)] · x[(n,p,q), (c,r,s)]
#include "ebb/ops/convolution/chunks.cuh"
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/second_stage.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

// Extents in chunks: `g` with c chunks of channels, m chunks of filters.
struct ChunkWeights {
  Weights g;
  int channels, filters;  // of one group
};

// Copies slabs of pixels of both operands. Columns are (chunk of c, tap): what the taps of a chunk
// have in common is in the first-level cache. A thread has one pixel of a slab, and of the tile's
// chunks of dy and of x every apart-th.
template <class T, class Tile>
class GradientCopier {
  static constexpr int depth = slab_depth<T>;
  static constexpr int apart = Tile::threads / depth;
  static constexpr int a_loads = Tile::rows / pack_size<T> / apart;
  static constexpr int b_loads = Tile::cols / pack_size<T> / apart;

 public:
  using A = AcrossK<T, Tile::rows>;
  using B = AcrossK<T, Tile::cols>;
  static Tensor prepared(std::int64_t images, int channels, std::int64_t plane, const Tensor& x) {
    return packed_pixels<T>(images, channels, plane, x);
  }

  // From pixel `first` on, before `end`: less than 2³¹ after it.
  __device__ GradientCopier(const ChunkWeights& all, const T* prepared_x, const T* prepared_dy,
                            std::int64_t group, int first_filter, std::int64_t first_of_columns,
                            std::int64_t first, std::int64_t end)
      : g_(all.g), left_(static_cast<int>(end - first) - pixel()) {
    const Weights& g = g_;
    const int first_m = first_filter / pack_size<T>;
    const std::int64_t first_column = first_of_columns / pack_size<T>;
    const auto* x = reinterpret_cast<const Chunk<T>*>(prepared_x) + group * g.c * g.x_plane;
    const auto* dy = reinterpret_cast<const Chunk<T>*>(prepared_dy) + group * g.m * g.dy_plane;
    m_left_ = g.m - first_m - chunk();
    const std::int64_t at = first + pixel();
    q_ = static_cast<int>(at % g.q);
    p_ = static_cast<int>(at / g.q % g.p);
    const std::int64_t image = at / g.q / g.p;
    x_ = x + image * g.x_image;
    dy_ = dy + image * g.dy_image + (first_m + chunk()) * g.dy_plane;
#pragma unroll
    for (int i = 0; i < b_loads; ++i) {
      const std::int64_t column = first_column + chunk() + i * apart;
      const std::int64_t tap = column % (g.r * g.s), c = column / (g.r * g.s);
      s_[i] = static_cast<int>(tap % g.s) * g.w_dilation;
      const int r = static_cast<int>(tap / g.s) * g.h_dilation;
      r_[i] = column < g.columns() ? r : outside;
      tap_[i] = static_cast<int>(c * g.x_plane + std::int64_t{r} * g.w + s_[i]);
    }
  }

  __device__ void fetch(A& a, B& b) {
    const Chunk<T>* from = dy_ + (std::int64_t{p_} * g_.q + q_);
#pragma unroll
    for (int i = 0; i < a_loads; ++i) {
      copy_async(&A::Rows::at(a, pixel(), chunk() + i * apart), from,
                 left_ > 0 && i * apart < m_left_);
      from += apart * g_.dy_plane;
    }
    const int h = left_ > 0 ? p_ * g_.h_stride - g_.h_padding : outside;
    const int w = q_ * g_.w_stride - g_.w_padding;
    const Chunk<T>* window = x_ + (std::int64_t{p_ * g_.h_stride - g_.h_padding} * g_.w + w);
#pragma unroll
    for (int i = 0; i < b_loads; ++i) {
      const bool inside = within(h + r_[i], g_.h) && within(w + s_[i], g_.w);
      copy_async_cached(&B::Cols::at(b, pixel(), chunk() + i * apart), window + tap_[i], inside);
    }
    step();
  }

 private:
  __device__ static int pixel() { return threadIdx.x % depth; }
  __device__ static int chunk() { return threadIdx.x / depth; }

  // pixel += depth, in the digits (n, p, q).
  __device__ void step() {
    left_ -= depth;
    q_ += g_.step_q;
    p_ += g_.step_p;
    int images = g_.step_n;
    if (q_ >= g_.q) {
      q_ -= g_.q;
      ++p_;
    }
    if (p_ >= g_.p) {
      p_ -= g_.p;
      ++images;
    }
    x_ += images * g_.x_image;
    dy_ += images * g_.dy_image;
  }

  const Weights& g_;
  int left_, m_left_, p_, q_;
  const Chunk<T>*x_, *dy_;
  int r_[b_loads], s_[b_loads], tap_[b_loads];
};

// For a kernel of one tap that meets every pixel of the image once, in chunks of adjacent ones of
// one channel. A thread has one chunk of a slab, and every apart-th channel of both operands.
template <class T, class Tile>
class PlaneGradientCopier {
  static constexpr int width = pack_size<T>;
  static constexpr int apart = Tile::threads / slab_chunks;

 public:
  using A = AlongK<T, Tile::rows, std::is_same_v<T, float>>;
  using B = AlongK<T, Tile::cols, std::is_same_v<T, float>>;
  static Tensor prepared(std::int64_t, int, std::int64_t, const Tensor& x) { return x; }

  __device__ PlaneGradientCopier(const ChunkWeights& all, const T* x, const T* dy,
                                 std::int64_t group, int first_filter, std::int64_t first_column,
                                 std::int64_t first, std::int64_t end)
      : plane_(all.g.x_plane),
        x_image_(std::int64_t{all.g.groups} * all.channels * plane_),
        dy_image_(std::int64_t{all.g.groups} * all.filters * plane_),
        left_(static_cast<int>(end - first) - chunk() * width),
        c_left_(all.channels - static_cast<int>(first_column) - row()),
        m_left_(all.filters - first_filter - row()) {
    const std::int64_t at = first + chunk() * width, image = at / plane_;
    pixel_ = at % plane_;
    x_ = x + image * x_image_ + (group * all.channels + first_column + row()) * plane_;
    dy_ = dy + image * dy_image_ + (group * all.filters + first_filter + row()) * plane_;
  }

  __device__ void fetch(A& a, B& b) {
#pragma unroll
    for (int i = 0; i < Tile::rows; i += apart)
      copy_async_ahead(&A::Rows::at(a, row() + i, chunk()), dy_ + (i * plane_ + pixel_),
                       left_ > 0 && i < m_left_);
#pragma unroll
    for (int i = 0; i < Tile::cols; i += apart)
      copy_async_ahead(&B::Cols::at(b, row() + i, chunk()), x_ + (i * plane_ + pixel_),
                       left_ > 0 && i < c_left_);
    left_ -= slab_depth<T>;
    for (pixel_ += slab_depth<T>; pixel_ >= plane_; pixel_ -= plane_) {
      x_ += x_image_;
      dy_ += dy_image_;
    }
  }

 private:
  __device__ static int chunk() { return threadIdx.x % slab_chunks; }
  __device__ static int row() { return threadIdx.x / slab_chunks; }
  std::int64_t plane_, x_image_, dy_image_, pixel_;
  int left_, c_left_, m_left_;
  const T *x_, *dy_;
};

// A tile of one slice: partial [slice, group, filter, chunk of c, tap, c in the chunk].
template <class T, class Tile, class Copier>
__global__ void __launch_bounds__(Tile::threads, 256 / Tile::threads)
    weight_gradient_mma(const __grid_constant__ ChunkWeights all, Slices slices, const T* x,
                        const T* dy, float* partial) {
  using Memory = Stage<typename Copier::A, typename Copier::B>;
  constexpr int width = pack_size<T>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Weights& g = all.g;
  const std::int64_t columns = g.columns() * width;
  BlockIndex block;
  const int first_m = block.next(divide_up(all.filters, Tile::rows)) * Tile::rows;
  const std::int64_t first_column =
      std::int64_t{block.next(divide_up<std::int64_t>(columns, Tile::cols))} * Tile::cols;
  const std::int64_t group = block.next(g.groups);
  const std::int64_t slice = block.left;
  const std::int64_t first = slice * slices.length * slab_depth<T>;
  const std::int64_t end = min(first + slices.length * slab_depth<T>, g.pixels);

  Copier copier(all, x, dy, group, first_m, first_column, first, end);
  MmaCore<T, Tile, typename Copier::A, typename Copier::B> core;
  const std::int64_t slabs = divide_up<std::int64_t>(end - first, slab_depth<T>);
  const auto fetch = [&](auto& stage) { copier.fetch(stage.a, stage.b); };
  multiply_stages<Tile::stages>(reinterpret_cast<Memory*>(memory), fetch, core,
                                static_cast<int>(slabs));

  float* const to =
      partial + ((slice * g.groups + group) * all.filters + first_m) * columns + first_column;
  core.for_each([&](int m, int n, const auto& sums) {
    if (first_m + m < all.filters && first_column + n < columns)
      *reinterpret_cast<std::remove_cvref_t<decltype(sums)>*>(to + m * columns + n) = sums;
  });
}

// Launchers.

template <class T, class Tile, class Copier>
void launch_weight_gradient_mma(const Weights& whole, const ChunkWeights& all, std::int64_t images,
                                const Tensor& x, const Tensor& dy, Tensor& dw) {
  const Weights& g = all.g;
  const std::int64_t columns = g.columns() * pack_size<T>;
  const std::int64_t blocks = std::int64_t{divide_up(all.filters, Tile::rows)} *
                              divide_up<std::int64_t>(columns, Tile::cols) * g.groups;
  const Slices slices(divide_up<std::int64_t>(g.pixels, slab_depth<T>),
                      enough_blocks<Tile>() / blocks);
  const std::int64_t size = std::int64_t{g.groups} * all.filters * columns;
  const Tensor x_prepared = Copier::prepared(images * g.groups, all.channels, g.x_plane, x);
  const Tensor dy_prepared = Copier::prepared(images * g.groups, all.filters, g.dy_plane, dy);
  Tensor partial = empty({slices.count, size}, {Dtype::f32, dw.device()});
  launch(op, weight_gradient_mma<T, Tile, Copier>, grid_of(op, blocks * slices.count),
         Tile::threads, Tile::stages * sizeof(Stage<typename Copier::A, typename Copier::B>), all,
         slices, x_prepared.data<T>(), dy_prepared.data<T>(), partial.data<float>());
  launch_add_filter_slices<T>(whole, slices.count, g.c, partial, x, dy, dw);
}

// Whether each pixel of dy is that of x in its place, in whole chunks.
template <class T>
bool in_place(const Weights& g) {
  return g.r == 1 && g.s == 1 && g.h_stride == 1 && g.w_stride == 1 && g.h_padding == 0 &&
         g.w_padding == 0 && g.x_plane % pack_size<T> == 0;
}

}  // namespace

bool mma::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const Weights whole = weights_of(size);
  const std::int64_t images = size.n;
  constexpr std::int64_t most = std::int64_t{1} << 30;
  if (!on_tensor_cores(dw.dtype()) || far(whole) || thin(whole.groups, whole.m, whole.c) ||
      images * whole.groups * std::max(whole.c, whole.m) >= most ||
      !worth_packing(whole.pixels * whole.columns() * whole.m * whole.groups))
    return false;
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    ChunkWeights all{whole, whole.c, whole.m};
    Weights& g = all.g;
    const int padded = in_place<T>(g) ? 8 : pack_size<T>;  // as sums are stored in eights
    g.c = divide_up(g.c, padded) * (padded / pack_size<T>);
    g.m = divide_up(g.m, pack_size<T>);
    g.x_image = std::int64_t{g.groups} * g.c * g.x_plane;
    g.dy_image = std::int64_t{g.groups} * g.m * g.dy_plane;
    set_steps(g, slab_depth<T>);
    gpu::with_tile<MmaTile<128, 128, 64, 64>, MmaTile<64, 128, 32, 64>>(
        all.filters, g.columns() * pack_size<T>, g.groups, 1, [&](auto tile) {
          using Tile = decltype(tile);
          const auto launch = [&](auto copier) {
            launch_weight_gradient_mma<T, Tile, typename decltype(copier)::type>(whole, all, images,
                                                                                 x, dy, dw);
          };
          if (in_place<T>(g)) {
            launch(std::type_identity<PlaneGradientCopier<T, Tile>>{});
          } else {
            launch(std::type_identity<GradientCopier<T, Tile>>{});
          }
        });
  };
  dw.dtype() == Dtype::bf16 ? with(bf16{}) : with(0.f);
  return true;
}

}  // namespace ebb::gpu
