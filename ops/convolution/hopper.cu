// A convolution of stride 1 as products of tiles that are shifted, not gathered:
//
//   out[m, j] = Σ over taps, c  weight[m, c, tap] · in[c, j + shift(tap)]
//   dw[m, c, tap] = Σ over j    dy[m, j] · x[c, j + shift(tap)]
//
// Operands are packed once into chunks of 16 bytes, channels of one pixel, and pixels into lines:
// all rows of all images after each other, with so many zeros between rows and between images as
// taps reach beyond them. On such a line a tap is a constant shift, a tile of adjacent pixels is
// one copy for all taps, and the operand of each tap begins at another chunk of the same tile.
//
// A block is one warpgroup with 64 filters, two blocks a multiprocessor. One thread, or one warp,
// begins to copy a stage as soon as the products with the one before have been done.
#include "ebb/ops/convolution/hopper.h"

#include "ebb/ops/convolution/filters_mma.cuh"
#include "ebb/ops/convolution/gather_mma.cuh"
#include "ebb/ops/convolution/wgmma.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;
using gpu::hopper::Barrier;

constexpr std::string_view op = "conv2d";
constexpr int filters = 64;       // of a tile
constexpr int tile_points = 224;  // of a line
constexpr int most_stages = 8;
constexpr int chunk_bytes = 16;
constexpr int step_chunks = 2;  // along k of one instruction: 16 bf16, 8 TF32

// One line of pixels, and what a tap is on it: tap (u, v) shifts by u · h_step + v · w_step from
// the first pixel that any tap sees.
struct Line {
  std::int64_t images;
  int height, width;  // of a row of images on the line, zeros included
  std::int64_t before,
      size;  // zeros in front; pixels of all, a whole number of tiles and the reach
  int h_taps, w_taps, h_step, w_step, first, reach;
  __host__ __device__ std::int64_t points() const { return images * height * width; }
};

Line line_of(const Gather& g, int tile) {
  const auto along = [](const Side& side) {
    const Axis axis = axis_of(side, 0);
    const int last = axis.first + (axis.taps - 1) * axis.step;
    struct {
      int low, high, extent;
    } a{std::min(axis.first, last), std::max(axis.first, last), 0};
    const int gap = std::max({0, -a.low, side.out + a.high - side.in});
    a.extent = std::max(side.in + gap, side.out);
    return a;
  };
  const auto h = along(g.h), w = along(g.w);
  const Axis rows = axis_of(g.h, 0), cols = axis_of(g.w, 0);
  Line line{g.images, h.extent, w.extent, 0, 0, rows.taps, cols.taps, 0, cols.step, 0, 0};
  line.h_step = rows.step * line.width;
  const int low = h.low * line.width + w.low;
  line.first = rows.first * line.width + cols.first - low;
  line.reach = (h.high - h.low) * line.width + w.high - w.low;
  line.before = low;
  line.size = round_up(line.points(), tile) + line.reach;
  return line;
}

// x [images, groups, channels, height, width] → [groups, chunks, line]: beginning at pixel `before`
// of the line, zeros where there is no pixel.
template <class T>
__global__ void __launch_bounds__(pack_threads)
    pack_line(Line line, int groups, int chunks, int channels, int height, int width,
              std::int64_t before, const T* x, Chunk<T>* packed) {
  constexpr int each = pack_size<T>;
  BlockIndex block;
  const std::int64_t at =
      std::int64_t{block.next(divide_up<std::int64_t>(line.size, pack_threads))} * pack_threads +
      threadIdx.x;
  const std::int64_t row = block.left;
  if (at >= line.size) return;
  const std::int64_t group = row / chunks;
  const int first = static_cast<int>(row % chunks) * each;
  const std::int64_t j = at + before;
  const auto across = static_cast<unsigned>(line.width), down = static_cast<unsigned>(line.height);
  const auto place = static_cast<unsigned>(j < 0 ? 0 : j);
  const unsigned w = place % across, h = place / across % down, image = place / across / down;
  const bool inside = j >= 0 && image < line.images && h < height && w < width;
  const std::int64_t plane = std::int64_t{height} * width;
  const T* from = x + ((std::int64_t{image} * groups + group) * channels + first) * plane +
                  std::int64_t{h} * width + w;
  Chunk<T> chunk;
#pragma unroll
  for (int e = 0; e < each; ++e)
    chunk.v[e] = inside && first + e < channels ? for_tensor_cores(from[e * plane]) : T{};
  packed[row * line.size + at] = chunk;
}

// Weights [group, tile of filters, stage, tap, chunk, filter], zeros beyond; `chunks` of a stage.
template <class T>
__global__ void __launch_bounds__(pack_threads)
    pack_taps(Gather g, int stages, int taps, int chunks, std::int64_t size, const T* weight,
              Chunk<T>* packed) {
  constexpr int each = pack_size<T>;
  const std::int64_t i = std::int64_t{blockIdx.x} * pack_threads + threadIdx.x;
  if (i >= size) return;
  BlockIndex place{i};
  const int filter = place.next(filters);
  const int chunk = place.next(chunks);
  const int tap = place.next(taps);
  const int stage = place.next(stages);
  const std::int64_t m = std::int64_t{place.next(divide_up(g.m, filters))} * filters + filter;
  const int first = (stage * chunks + chunk) * each;
  const T* from =
      weight + place.left * g.m * g.c * taps + m * g.m_stride + first * g.c_stride + tap;
  Chunk<T> out;
#pragma unroll
  for (int e = 0; e < each; ++e)
    out.v[e] = m < g.m && first + e < g.c ? for_tensor_cores(from[e * g.c_stride]) : T{};
  packed[i] = out;
}

// How the sum over channels is cut: `steps` instructions a tap and stage.
struct Stages {
  int steps, count, ring;
  int filter_bytes, pixel_bytes;  // of a stage
  __host__ __device__ int bytes() const { return filter_bytes + pixel_bytes; }
};

__device__ inline void copy(void* to, const void* from, int bytes, Barrier& there) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&there))
      : "memory");
}

__device__ inline void products_done_but_last() {
  asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}
__device__ inline void products_done() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Writes rows of a tile to out through shared memory, so that adjacent points are written together.
// Each warp has 16 rows of its own.
template <class Out>
__device__ void store_tile(const float (&sums)[tile_points / 2], Out* rows, const Line& line,
                           std::int64_t first_point, int height, int width, int left,
                           std::int64_t image_stride, const Out* bias, Out* out) {
  constexpr int pitch = tile_points + 8;
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = lane_id();
  rows += warp * 16 * pitch;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    const float add = bias && warp * 16 + row < left ? widen(bias[warp * 16 + row]) : 0.f;
#pragma unroll
    for (int c = 0; c < tile_points / 8; ++c) {
      Pack<Out, 2> two;
      two.v[0] = narrow<Out>(sums[c * 4 + r * 2] + add);
      two.v[1] = narrow<Out>(sums[c * 4 + r * 2 + 1] + add);
      *reinterpret_cast<Pack<Out, 2>*>(rows + row * pitch + c * 8 + lane % 4 * 2) = two;
    }
  }
  __syncwarp();
  const std::int64_t plane = std::int64_t{height} * width;
  out += warp * 16 * plane;
#pragma unroll
  for (int c = 0; c < tile_points / warp_size; ++c) {
    const std::int64_t point = first_point + c * warp_size + lane;
    const auto j = static_cast<unsigned>(point), across = static_cast<unsigned>(line.width);
    const unsigned w = j % across, h = j / across % line.height, image = j / across / line.height;
    if (image >= line.images || h >= height || w >= width) continue;
    Out* to = out + image * image_stride + std::int64_t{h} * width + w;
#pragma unroll
    for (int row = 0; row < 16; ++row)
      if (warp * 16 + row < left) to[row * plane] = rows[row * pitch + c * warp_size + lane];
  }
}

template <class T>
__global__ void __launch_bounds__(gpu::hopper::warpgroup, 2)
    shifted(const __grid_constant__ Gather g, const __grid_constant__ Line line, Stages stages,
            const Chunk<T>* pixels, const Chunk<T>* weights, const T* bias, T* out) {
  if constexpr (gpu::hopper::has_wgmma) {
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Barrier full[most_stages];
    BlockIndex block;
    const int tiles = divide_up(g.m, filters);
    const int tile = block.next(tiles);
    const std::int64_t first_point =
        std::int64_t{block.next(divide_up<std::int64_t>(line.points(), tile_points))} * tile_points;
    const std::int64_t group = block.left;
    const int taps = line.h_taps * line.w_taps, chunks = stages.steps * step_chunks;
    const int run = (tile_points + line.reach) * chunk_bytes;  // pixels of one chunk
    weights += (group * tiles + tile) * stages.count * (stages.filter_bytes / chunk_bytes);
    pixels += group * stages.count * chunks * line.size + first_point;

    const auto fetch = [&](int stage, int at) {
      unsigned char* const to = ring + at * stages.bytes();
      full[at].arrive_expecting(stages.filter_bytes + chunks * run);
      copy(to, weights + std::int64_t{stage} * (stages.filter_bytes / chunk_bytes),
           stages.filter_bytes, full[at]);
      for (int chunk = 0; chunk < chunks; ++chunk)
        copy(to + stages.filter_bytes + chunk * run,
             pixels + (std::int64_t{stage} * chunks + chunk) * line.size, run, full[at]);
    };
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages.ring; ++i) full[i].init(1);
      gpu::hopper::show_barriers();
      for (int i = 0; i < stages.ring - 1 && i < stages.count; ++i) fetch(i, i);
    }
    __syncthreads();

    float sums[tile_points / 2] = {};
    int now = 0, phase = 0;
    for (int stage = 0; stage < stages.count; ++stage) {
      full[now].wait(phase);
      const unsigned char* const a = ring + now * stages.bytes();
      std::uint64_t filter = gpu::hopper::chunk_descriptor(a, filters * chunk_bytes, 128);
      const std::uint64_t first =
          gpu::hopper::chunk_descriptor(a + stages.filter_bytes, run, 128) + line.first;
#pragma unroll 1
      for (int tap = 0, u = 0, v = 0; tap < taps; ++tap) {
        std::uint64_t pixel = first + u * line.h_step + v * line.w_step;
#pragma unroll 1
        for (int step = 0; step < stages.steps; ++step) {
          gpu::hopper::begin_products();
          gpu::hopper::multiply_along<T>(sums, filter, pixel);
          filter += step_chunks * filters;
          pixel += step_chunks * run / chunk_bytes;
        }
        if (++v < line.w_taps) continue;
        v = 0;
        ++u;
      }
      gpu::hopper::end_products();
      products_done_but_last();
      __syncthreads();
      const int before = now == 0 ? stages.ring - 1 : now - 1;
      if (threadIdx.x == 0 && stage + stages.ring - 1 < stages.count)
        fetch(stage + stages.ring - 1, before);
      if (++now == stages.ring) {
        now = 0;
        phase ^= 1;
      }
    }
    products_done();
#pragma unroll
    for (float& s : sums) asm volatile("" : "+f"(s)::"memory");
    __syncthreads();
    const std::int64_t channel = group * g.m + tile * filters;
    const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
    store_tile<T>(sums, reinterpret_cast<T*>(ring), line, first_point, g.h.out, g.w.out,
                  g.m - tile * filters, plane * g.groups * g.m, bias ? bias + channel : nullptr,
                  out + channel * plane);
  } else {
    __trap();
  }
}

// The weight gradient: 64 filters × `channels`, for `together` taps at once, over one slice of the
// line. Both operands are across k, as packed.
template <int channels_, int together_>
struct GradientTile {
  static constexpr int channels = channels_;
  static constexpr int together = together_;
  static constexpr int chunks = channels / 8;
  static constexpr int points = 64;  // of the line, a stage
  static constexpr int dy_bytes = filters / 8 * points * chunk_bytes;
};

// The taps of a block and what they reach on the line, from shift `low` on.
template <int together>
struct TapGroup {
  int shift[together], low, reach;
  __host__ __device__ TapGroup(const Line& line, int first) {
    int high = 0;
    for (int t = 0; t < together; ++t) {
      const int last = line.h_taps * line.w_taps - 1, tap = first + t < last ? first + t : last;
      shift[t] = line.first + tap / line.w_taps * line.h_step + tap % line.w_taps * line.w_step;
      low = t == 0 || shift[t] < low ? shift[t] : low;
      high = t == 0 || shift[t] > high ? shift[t] : high;
    }
    reach = high - low;
  }
};

// Partial sums [slice, group, filter, chunk of c, tap, c in the chunk].
template <class Tile>
__global__ void __launch_bounds__(gpu::hopper::warpgroup, 2)
    shifted_gradient(const __grid_constant__ Line line, Slices slices, int groups, int m_chunks,
                     int c_chunks, int m, int ring_stages, int stage_bytes, std::int64_t dy_size,
                     const Chunk<bf16>* x, const Chunk<bf16>* dy, float* partial) {
  if constexpr (gpu::hopper::has_wgmma) {
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Barrier full[most_stages];
    const int taps = line.h_taps * line.w_taps;
    BlockIndex block;
    const int m_first = block.next(divide_up(m_chunks, filters / 8)) * (filters / 8);
    const int c_first = block.next(divide_up(c_chunks, Tile::chunks)) * Tile::chunks;
    const int tap_first = block.next(divide_up(taps, Tile::together)) * Tile::together;
    const std::int64_t group = block.next(groups);
    const std::int64_t slice = block.left;
    const TapGroup<Tile::together> tap(line, tap_first);
    const int run = (Tile::points + tap.reach) * chunk_bytes;
    const std::int64_t begin = slice * slices.length;
    const int stages = static_cast<int>(min(slices.length, dy_size / Tile::points - begin));
    const int m_here = min(filters / 8, m_chunks - m_first),
              c_here = min(Tile::chunks, c_chunks - c_first);
    dy += (group * m_chunks + m_first) * dy_size + begin * Tile::points;
    x += (group * c_chunks + c_first) * line.size + begin * Tile::points + tap.low;

    // Chunks beyond the last are not copied: their sums are not stored.
    const auto fetch = [&](std::int64_t stage, int at) {
      unsigned char* const to = ring + at * stage_bytes;
      constexpr int dy_run = Tile::points * chunk_bytes;
      const int i = lane_id();
      if (i == 0) full[at].arrive_expecting(m_here * dy_run + c_here * run);
      __syncwarp();
      if (i < m_here) {
        copy(to + i * dy_run, dy + i * dy_size + stage * Tile::points, dy_run, full[at]);
      } else if (i >= filters / 8 && i - filters / 8 < c_here) {
        const int c = i - filters / 8;
        copy(to + Tile::dy_bytes + c * run, x + c * line.size + stage * Tile::points, run,
             full[at]);
      }
    };
    if (threadIdx.x < warp_size) {
      if (threadIdx.x == 0) {
        for (int i = 0; i < ring_stages; ++i) full[i].init(1);
        gpu::hopper::show_barriers();
      }
      __syncwarp();
      for (int i = 0; i < ring_stages - 1 && i < stages; ++i) fetch(i, i);
    }
    __syncthreads();

    float sums[Tile::together][Tile::channels / 2] = {};
#pragma unroll
    for (auto& tap_sums : sums)
#pragma unroll
      for (float& s : tap_sums) asm volatile("" : "+f"(s)::"memory");
    int now = 0, phase = 0;
    for (int stage = 0; stage < stages; ++stage) {
      full[now].wait(phase);
      const unsigned char* const a = ring + now * stage_bytes;
      const std::uint64_t left =
          gpu::hopper::chunk_descriptor(a, 8 * chunk_bytes, Tile::points * chunk_bytes);
      const std::uint64_t right =
          gpu::hopper::chunk_descriptor(a + Tile::dy_bytes, 8 * chunk_bytes, run);
      gpu::hopper::begin_products();
#pragma unroll
      for (int step = 0; step < Tile::points / 16; ++step)
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
          gpu::hopper::multiply_across(sums[t], left + step * 16,
                                       right + step * 16 + (tap.shift[t] - tap.low));
      gpu::hopper::end_products();
      products_done_but_last();
      __syncthreads();
      const int before = now == 0 ? ring_stages - 1 : now - 1;
      if (threadIdx.x < warp_size && stage + ring_stages - 1 < stages)
        fetch(stage + ring_stages - 1, before);
      if (++now == ring_stages) {
        now = 0;
        phase ^= 1;
      }
    }
    products_done();
    const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = lane_id();
#pragma unroll
    for (int t = 0; t < Tile::together; ++t)
#pragma unroll
      for (float& s : sums[t]) asm volatile("" : "+f"(s)::"memory");
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t filter = m_first * 8 + warp * 16 + lane / 4 + 8 * r;
      if (filter >= m) continue;
      float* const to =
          partial + ((slice * groups + group) * m + filter) * c_chunks * taps * 8 + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < Tile::together; ++t)
#pragma unroll
        for (int c = 0; c < Tile::chunks; ++c)
          if (tap_first + t < taps && c_first + c < c_chunks)
            *reinterpret_cast<Pack<float, 2>*>(
                to + (std::int64_t{c_first + c} * taps + tap_first + t) * 8) = {
                sums[t][c * 4 + r * 2], sums[t][c * 4 + r * 2 + 1]};
    }
  } else {
    __trap();
  }
}

// Launchers.

// Code for another architecture has no barriers.
bool compiled() {
  static const bool there = [] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, shifted<bf16>), op);
    return attributes.sharedSizeBytes > 0;
  }();
  return there;
}

bool usable(const Gather& g, Dtype dtype) {
  const auto short_of = [](std::int64_t n) { return n < std::int64_t{1} << 30; };
  const std::int64_t taps = std::int64_t{g.h.kernel} * g.w.kernel;
  return compute_capability() == 90 && on_tensor_cores(dtype) && g.h.stride == 1 &&
         g.w.stride == 1 && g.images < 1 << 20 &&
         short_of((g.images + 1) * (g.h.in + g.h.out + std::int64_t{g.h.kernel} * g.h.dilation) *
                  (g.w.in + g.w.out + std::int64_t{g.w.kernel} * g.w.dilation)) &&
         short_of(taps * g.c * g.m) && compiled();
}

constexpr int half_memory = 113 * 1024;  // of a multiprocessor

template <class T>
Tensor packed_line(const Line& line, int groups, int channels, int chunks, int height, int width,
                   const Tensor& x) {
  Tensor packed = empty({groups, chunks, line.size, pack_size<T>}, x.options());
  const std::int64_t blocks = divide_up<std::int64_t>(line.size, pack_threads) * groups * chunks;
  launch(op, pack_line<T>, grid_of(op, blocks), pack_threads, 0, line, groups, chunks, channels,
         height, width, line.before, x.data<T>(), reinterpret_cast<Chunk<T>*>(packed.data<T>()));
  return packed;
}

// As many instructions a stage as leave few zeros beyond the last channel.
template <class T>
Stages stages_of(int channels, int taps, int reach) {
  const int all = divide_up(channels, step_chunks * pack_size<T>);
  int steps = 1;
  for (int more = 2; more * taps <= 8 && more <= all; ++more)
    if (round_up(all, more) <= round_up(all, steps)) steps = more;
  Stages stages{steps, divide_up(all, steps), 0, taps * steps * step_chunks * filters * chunk_bytes,
                steps * step_chunks * (tile_points + reach) * chunk_bytes};
  stages.ring = std::min(most_stages, half_memory / stages.bytes());
  return stages;
}

template <class T>
bool run(const Gather& g, const Tensor& in, const Tensor& weight, const Tensor& bias, Tensor& out) {
  const Line line = line_of(g, tile_points);
  const int taps = line.h_taps * line.w_taps;
  const Stages stages = stages_of<T>(g.c, taps, line.reach);
  const std::int64_t tiles = divide_up(g.m, filters);
  const std::int64_t blocks =
      divide_up<std::int64_t>(line.points(), tile_points) * tiles * g.groups;
  if (stages.ring < 2 || blocks < multiprocessors()) return false;
  const int chunks = stages.count * stages.steps * step_chunks;
  const Tensor pixels = packed_line<T>(line, g.groups, g.c, chunks, g.h.in, g.w.in, in);
  const std::int64_t size = g.groups * tiles * chunks * taps * filters;
  Tensor weights = empty({size, pack_size<T>}, weight.options());
  launch(op, pack_taps<T>, grid_of(op, divide_up<std::int64_t>(size, pack_threads)), pack_threads,
         0, g, stages.count, taps, stages.steps * step_chunks, size, weight.data<T>(),
         reinterpret_cast<Chunk<T>*>(weights.data<T>()));
  const size_t rows = filters * (tile_points + 8) * sizeof(T);
  const size_t shared = std::max(size_t(stages.ring) * stages.bytes(), rows);
  launch(op, shifted<T>, grid_of(op, blocks), gpu::hopper::warpgroup, shared, g, line, stages,
         chunks_of<T>(pixels), chunks_of<T>(weights), bias.defined() ? bias.data<T>() : nullptr,
         out.data<T>());
  return true;
}

template <class Tile>
bool run_gradient(const Gather& g, const Tensor& x, const Tensor& dy, Tensor& dw) {
  Line line = line_of(g, Tile::points);
  const int taps = line.h_taps * line.w_taps;
  int reach = 0;
  for (int tap = 0; tap < taps; tap += Tile::together)
    reach = std::max(reach, TapGroup<Tile::together>(line, tap).reach);
  const int stage_bytes = Tile::dy_bytes + Tile::chunks * (Tile::points + reach) * chunk_bytes;
  const int ring = std::min(most_stages, half_memory / stage_bytes);
  if (ring < 2) return false;
  const int m_chunks = divide_up(g.m, 8), c_chunks = divide_up(g.c, 8);
  const Tensor x_line = packed_line<bf16>(line, g.groups, g.c, c_chunks, g.h.in, g.w.in, x);
  Line dy_place = line;
  dy_place.before = 0;
  dy_place.size = line.size - line.reach;
  const Tensor dy_line = packed_line<bf16>(dy_place, g.groups, g.m, m_chunks, g.h.out, g.w.out, dy);
  const std::int64_t tiles = std::int64_t{divide_up(g.m, filters)} *
                             divide_up(c_chunks, Tile::chunks) * divide_up(taps, Tile::together) *
                             g.groups;
  const Slices slices(dy_place.size / Tile::points, 2 * multiprocessors() / tiles);
  const std::int64_t size = std::int64_t{g.groups} * g.m * c_chunks * 8 * taps;
  Tensor partial = empty({slices.count, size}, {Dtype::f32, dw.device()});
  launch(op, shifted_gradient<Tile>, grid_of(op, tiles * slices.count), gpu::hopper::warpgroup,
         size_t(ring) * stage_bytes, line, slices, g.groups, m_chunks, c_chunks, g.m, ring,
         stage_bytes, dy_place.size, chunks_of<bf16>(x_line), chunks_of<bf16>(dy_line),
         partial.data<float>());
  launch(op, add_filter_slices<bf16>, grid_of(op, divide_up<std::int64_t>(size, 32)), dim3(32, 8),
         0, size, slices.count, taps, c_chunks, g.c, partial.data<float>(), dw.data<bf16>());
  return true;
}

}  // namespace

bool gpu::hopper::convolve(const Conv2dSize& size, bool transposed, const Tensor& in,
                           const Tensor& weight, const Tensor& bias, Tensor& out) {
  const Gather g = gather_of(op, size, transposed);
  if (!usable(g, out.dtype()) || g.m <= 16 || in_place<bf16>(g) ||
      !worth_packing(out.numel() * g.c * g.h.kernel * g.w.kernel))
    return false;
  return out.dtype() == Dtype::bf16 ? run<bf16>(g, in, weight, bias, out)
                                    : run<float>(g, in, weight, bias, out);
}

bool gpu::hopper::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy,
                                  Tensor& dw) {
  const Gather g = gather_of(op, size, false);
  const int taps = g.h.kernel * g.w.kernel;
  if (dw.dtype() != Dtype::bf16 || !usable(g, Dtype::bf16) || g.m <= 16 || g.c <= 16 || taps < 2 ||
      !worth_packing(dy.numel() * g.c * taps))
    return false;
  if (g.c > 64) return run_gradient<GradientTile<128, 3>>(g, x, dy, dw);
  return taps <= 3 ? run_gradient<GradientTile<64, 3>>(g, x, dy, dw)
                   : run_gradient<GradientTile<64, 5>>(g, x, dy, dw);
}

}  // namespace ebb
