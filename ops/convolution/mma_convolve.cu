// The convolution that tiles_convolve.cu computes, on tensor cores:
//
//   out[image, m, point] = Σ over c, taps of weight[m, c, tap] · in[image, c, point's pixel at tap]
//
// Pixels are packed into chunks of their channels.
#include "ebb/core/basic.h"
#include "ebb/ops/convolution/chunks.cuh"
#include "ebb/ops/convolution/paths.h"

namespace ebb::gpu {
namespace {

using namespace convolution;

// The order of k in a product: (four chunks of c, tap) if they are whole, else (tap, chunk of c).
__host__ __device__ inline bool whole_slabs(const Gather& g) {
  return g.c_packed % slab_chunks == 0;
}
struct KOrder {
  int tap, chunk;
  __device__ KOrder(const Gather& g, int taps, int slab, int lane) {
    const int k = slab * slab_chunks + lane;
    tap = whole_slabs(g) ? slab % taps : k / g.c_packed;
    chunk = whole_slabs(g) ? slab / taps * slab_chunks + lane : k % g.c_packed;
  }
};

// As pack_weights of tiles_convolve.cu: rows k of one class after another, each beginning a slab;
// columns m; zeros beyond.
template <class T>
__global__ void pack_filters(Gather g, std::int64_t slabs, const T* weight, Chunk<T>* packed) {
  constexpr int width = pack_size<T>;
  BlockIndex block;
  const std::int64_t m = std::int64_t{block.next(g.columns / 32)} * 32 + threadIdx.x;
  const int slab = block.next(slabs);
  const Class z = class_of(g, block.next(g.classes()), slab_chunks);
  const std::int64_t group = block.left;
  if (slab >= z.slabs) return;
  const int taps = z.h.taps * z.w.taps;
  const KOrder k(g, taps, slab, threadIdx.y);
  const std::int64_t first = std::int64_t{k.chunk} * width;
  const std::int64_t r = z.h.tap_first + std::int64_t{k.tap / z.w.taps} * z.h.tap_step;
  const std::int64_t s = z.w.tap_first + std::int64_t{k.tap % z.w.taps} * z.w.tap_step;
  const T* from = weight + group * g.m * g.c * g.h.kernel * g.w.kernel + m * g.m_stride +
                  first * g.c_stride + r * g.w.kernel + s;
  const bool real = m < g.m && k.tap < taps;
  Chunk<T> chunk;
#pragma unroll
  for (int e = 0; e < width; ++e)
    chunk.v[e] = real && first + e < g.c ? for_tensor_cores(from[e * g.c_stride]) : T{};
  const std::int64_t row = z.first_row + std::int64_t{slab} * slab_chunks + threadIdx.y;
  packed[(group * g.rows + row) * g.columns + m] = chunk;
}

// Copies slabs of packed weights: column m of the tile is a row of the product. Blocks that share a
// multiprocessor read the same ones.
template <class T, class Tile>
class FilterCopier {
  static constexpr int apart = Tile::threads / slab_chunks;
  using Slab = AlongK<T, Tile::rows>;

 public:
  // `from` is the tile's first chunk, `stride` the padded extent of the whole matrix.
  __device__ FilterCopier(const Chunk<T>* from, std::int64_t stride)
      : next_(from + chunk() * stride + row()), stride_(stride) {}

  __device__ void fetch(Slab& slab) {
#pragma unroll
    for (int i = 0; i < divide_up(Tile::rows, apart); ++i)
      if (Tile::rows % apart == 0 || row() + i * apart < Tile::rows)
        copy_async_cached(&Slab::Rows::at(slab, row() + i * apart, chunk()), next_ + i * apart,
                          true);
    next_ += slab_chunks * stride_;
  }

 private:
  __device__ static int chunk() { return threadIdx.x / apart; }
  __device__ static int row() { return threadIdx.x % apart; }
  const Chunk<T>* next_;
  std::int64_t stride_;
};

// Copies slabs of gathered pixels: column n is a point of an image, k is as pack_filters has it. A
// thread stays with its columns, and with every fourth chunk. Taps of the same chunks are copied
// after each other, so that most of them are in the first-level cache.
template <class T, class Tile>
class PixelCopier {
  static constexpr int apart = Tile::threads / slab_chunks;
  static constexpr int loads = Tile::cols / apart;

 public:
  using Slab = AlongK<T, Tile::cols>;

  // As PixelLoader.
  __device__ PixelCopier(const Gather& g, const Class& z, const T* prepared, std::int64_t group,
                         std::int64_t first_column, int first_slab, std::int64_t* places)
      : g_(g), h_taps_(z.h.taps), w_taps_(z.w.taps), h_step_(z.h.step), w_step_(z.w.step) {
    const ColumnPoints columns(first_column, std::int64_t{z.h.points} * z.w.points);
    const auto* in = reinterpret_cast<const Chunk<T>*>(prepared) + group * g.c_packed * g.in_plane;
#pragma unroll
    for (int j = 0; j < loads; ++j) {
      const std::int64_t image = columns.image(column(j));
      const unsigned point = columns.point(column(j)), across = static_cast<unsigned>(z.w.points);
      const int h = static_cast<int>(point / across), w = static_cast<int>(point % across);
      const bool real = image < g.images;
      const int first_h = h * z.h.stride + z.h.first;
      h_[j] = real ? first_h : outside;
      w_[j] = w * z.w.stride + z.w.first;
      from_[j] = in + image * g.groups * g.c_packed * g.in_plane +
                 (std::int64_t{first_h} * g.w.in + w_[j]);
      const std::int64_t row = z.h.out_first + std::int64_t{h} * z.h.out_stride;
      const std::int64_t col = z.w.out_first + std::int64_t{w} * z.w.out_stride;
      if (chunk() == 0)
        places[column(j)] = real ? (image * g.groups * g.m * g.h.out + row) * g.w.out + col : -1;
    }
    start(first_slab);
  }

  __device__ void fetch(Slab& slab) {
    const int down = u_ < h_taps_ ? u_ * h_step_ : outside;
    const int right = v_ * w_step_;
    const std::int64_t tap = c_ * g_.in_plane + (std::int64_t{u_ * h_step_} * g_.w.in + right);
#pragma unroll
    for (int j = 0; j < loads; ++j) {
      const bool inside = within(h_[j] + down, g_.h.in) && within(w_[j] + right, g_.w.in);
      copy_async_cached(&Slab::Cols::at(slab, column(j), chunk()), from_[j] + tap, inside);
    }
    advance();
  }

 private:
  __device__ static int chunk() { return threadIdx.x / apart; }
  __device__ static int column(int j) { return threadIdx.x % apart + j * apart; }

  __device__ void start(int slab) {
    const KOrder k(g_, h_taps_ * w_taps_, slab, chunk());
    c_ = k.chunk;
    u_ = k.tap / w_taps_;
    v_ = k.tap % w_taps_;
    const int taps = slab_chunks / g_.c_packed;
    c_more_ = slab_chunks % g_.c_packed;
    v_more_ = taps % w_taps_;
    u_more_ = taps / w_taps_;
  }

  // k += slab_chunks, in the digits (c, u, v) of whole slabs of c, or else (u, v, c).
  __device__ void advance() {
    if (whole_slabs(g_)) {
      if (++v_ < w_taps_) return;
      v_ = 0;
      if (++u_ < h_taps_) return;
      u_ = 0;
      c_ += slab_chunks;
      return;
    }
    c_ += c_more_;
    v_ += v_more_;
    u_ += u_more_;
    if (c_ >= g_.c_packed) {
      c_ -= g_.c_packed;
      ++v_;
    }
    if (v_ >= w_taps_) {
      v_ -= w_taps_;
      ++u_;
    }
  }

  const Gather& g_;
  int h_taps_, w_taps_, h_step_, w_step_;
  int c_, u_, v_;
  int c_more_, u_more_, v_more_;
  const Chunk<T>* from_[loads];
  int h_[loads], w_[loads];
};

template <class T, class Tile>
struct GatherMemory {
  using A = AlongK<T, Tile::rows>;
  using B = AlongK<T, Tile::cols>;
  Stage<A, B> ring[Tile::stages];
  std::int64_t places[Tile::cols];
};

// As gather: slice i of several goes to out + i · out_size.
template <class T, class Out, class Tile>
__global__ void __launch_bounds__(Tile::threads, 256 / Tile::threads)
    gather_mma(const __grid_constant__ Gather g, Slices slices, std::int64_t column_tiles,
               int together, std::int64_t out_size, const T* in, const Chunk<T>* packed,
               const T* bias, Out* out) {
  using Memory = GatherMemory<T, Tile>;
  extern __shared__ __align__(128) unsigned char bytes[];
  Memory& memory = *reinterpret_cast<Memory*>(bytes);
  BlockIndex block;
  const int first_m = block.next(divide_up(g.m, Tile::rows)) * Tile::rows;
  const std::int64_t first_column = std::int64_t{block.next(column_tiles)} * Tile::cols;
  const std::int64_t slice = block.next(slices.count);
  const Class z = class_of(g, block.next(g.classes()), slab_chunks);
  const std::int64_t group = block.left;
  if (first_column >= g.images * z.h.points * z.w.points) return;

  const int first_slab = static_cast<int>(min(slice * slices.length, z.slabs));
  const int slabs = static_cast<int>(min(slices.length, z.slabs - first_slab));
  const std::int64_t first_row =
      group * g.rows + z.first_row + std::int64_t{first_slab} * slab_chunks;
  FilterCopier<T, Tile> a(packed + first_row * g.columns + first_m, g.columns);
  PixelCopier<T, Tile> b(g, z, in, group, first_column, first_slab, memory.places);
  MmaCore<T, Tile, typename Memory::A, typename Memory::B> core;
  __syncthreads();  // places, even if there is no slab
  const auto fetch = [&](auto& stage) {
    a.fetch(stage.a);
    b.fetch(stage.b);
  };
  multiply_stages<Tile::stages>(memory.ring, fetch, core, slabs);

  const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
  const std::int64_t first_channel = group * g.m + first_m;
  Out* const to = out + slice * out_size + first_channel * plane;
  core.for_each([&](int m, int n, const auto& sums) {
    if (first_m + m >= g.m) return;
    const float add = bias ? widen(bias[first_channel + m]) : 0.f;
    store_columns(to + m * plane, memory.places + n, sums, add, together);
  });
}

// Launchers.

template <class T>
Tensor packed_filters(const Gather& g, const Tensor& weight) {
  Tensor packed = empty({g.groups, g.rows, g.columns, pack_size<T>}, weight.options());
  const std::int64_t slabs = g.rows / slab_chunks;
  const std::int64_t blocks = g.columns / 32 * slabs * g.classes() * g.groups;
  launch(op, pack_filters<T>, grid_of(op, blocks), dim3(32, slab_chunks), 0, g, slabs,
         weight.data<T>(), reinterpret_cast<Chunk<T>*>(packed.data<T>()));
  return packed;
}

template <class T, class Tile>
void launch_gather_mma(Gather g, std::int64_t points, const Tensor& in, const Tensor& weight,
                       const T* bias, Tensor& out) {
  g.columns = round_up(g.m, std::max(Tile::rows, 32));
  const Tensor filters = packed_filters<T>(g, weight);
  const Tensor pixels = packed_pixels<T>(g.images * g.groups, g.c, g.in_plane, in);
  const std::int64_t column_tiles = divide_up<std::int64_t>(g.images * points, Tile::cols);
  const std::int64_t blocks = divide_up(g.m, Tile::rows) * column_tiles * g.groups * g.classes();
  const std::int64_t slabs = g.rows / slab_chunks - g.classes();  // of all classes
  const Slices slices(slabs + (dense(g) ? 0 : g.classes()),
                      dense(g) ? enough_blocks<Tile>() / blocks : 1);
  const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
  const int together = adjacent_columns(g);
  const dim3 grid = grid_of(op, blocks * slices.count);
  const size_t shared = sizeof(GatherMemory<T, Tile>);
  if (slices.count == 1) {
    launch(op, gather_mma<T, T, Tile>, grid, Tile::threads, shared, g, slices, column_tiles,
           together, out.numel(), pixels.data<T>(), chunks_of<T>(filters), bias, out.data<T>());
    return;
  }
  Tensor partial = empty({slices.count, out.numel()}, {Dtype::f32, out.device()});
  launch(op, gather_mma<T, float, Tile>, grid, Tile::threads, shared, g, slices, column_tiles,
         together, out.numel(), pixels.data<T>(), chunks_of<T>(filters),
         static_cast<const T*>(nullptr), partial.data<float>());
  launch_add_slices<T>(op, out.numel(), slices.count, partial, plane, g.groups * g.m, bias, out);
}

}  // namespace

bool mma::convolve(const Conv2dSize& size, bool transposed, const Tensor& in, const Tensor& weight,
                   const Tensor& bias, Tensor& out) {
  Gather g = gather_of(size, transposed);
  const std::int64_t points = std::int64_t{most_points(g.h)} * most_points(g.w);
  const std::int64_t taps = std::int64_t{g.h.kernel} * g.w.kernel;
  constexpr std::int64_t most = std::int64_t{1} << 30;
  if (!on_tensor_cores(out.dtype()) || thin(g.groups, g.m, g.c) || points >= most ||
      taps * g.c >= most || g.images * g.groups * g.c >= most ||
      !worth_packing(g.images * points * g.groups * g.m * g.c * taps))
    return false;
  if (gaps(g)) gpu::fill(0, out);
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    const T* b = bias.defined() ? bias.data<T>() : nullptr;
    g.c_packed = divide_up(g.c, pack_size<T>);
    g.rows = round_up(taps * g.c_packed, slab_chunks) + slab_chunks * g.classes();
    // Wide tiles: their pixels are those of other taps too, and so mostly in the first-level cache.
    const auto tiled = [&](auto tile) {
      launch_gather_mma<T, decltype(tile)>(g, points, in, weight, b, out);
    };
    if (g.m <= 16) return tiled(MmaTile<16, 256, 16, 64>{});
    if (g.m <= 32) return tiled(MmaTile<32, 256, 32, 64>{});
    tiled(MmaTile<64, 256, 64, 64>{});
  };
  out.dtype() == Dtype::bf16 ? with(bf16{}) : with(0.f);
  return true;
}

}  // namespace ebb::gpu
