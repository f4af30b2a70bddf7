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
//
// Float32 without TF32 is three products of TF32, of high and low parts (chunks.cuh). As the tensor
// cores cut their sums instead of rounding them, few taps are added there, the small products
// first, and those sums in registers.
#include "ebb/ops/convolution/hopper.h"

#include "ebb/ops/convolution/line.cuh"
#include "ebb/ops/convolution/stages.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;
using gpu::hopper::Barrier;
using gpu::hopper::copy;
using gpu::hopper::most_slots;
using gpu::hopper::moved;

constexpr std::string_view op = "conv2d";
constexpr int filters = 64;       // of a tile
constexpr int tile_points = 224;  // of a line
constexpr int chunk_bytes = 16;
constexpr int step_chunks = 2;  // along k of one instruction: 16 bf16, 8 TF32

// Weights → [group, tile of filters, stage, tap, chunk, filter], zeros beyond; `chunks` of a stage.
template <class T, Form form>
struct TapPacker {
  Gather g;
  int stages, taps, chunks;
  std::int64_t size;
  const T* weight;
  Chunk<T>* packed;

  __host__ __device__ std::int64_t blocks() const {
    return divide_up<std::int64_t>(size, pack_threads);
  }
  __device__ void pack(std::int64_t block) const {
    const std::int64_t i = block * pack_threads + threadIdx.x;
    if (i >= size) return;
    BlockIndex place{i};
    const int filter = place.next(filters);
    const int chunk = place.next(chunks);
    const int tap = place.next(taps);
    const int stage = place.next(stages);
    const std::int64_t m = std::int64_t{place.next(divide_up(g.m, filters))} * filters + filter;
    const int first = (stage * chunks + chunk) * pack_size<T>;
    const T* from =
        weight + place.left * g.m * g.c * taps + m * g.m_stride + first * g.c_stride + tap;
    FormedChunk<T, form> out;
#pragma unroll
    for (int e = 0; e < pack_size<T>; ++e)
      if (m < g.m && first + e < g.c) out.set(e, from[e * g.c_stride]);
    out.store(packed + i, size);
  }
};

// How the sum over channels and taps is cut: `products` instructions a stage, `steps` for each tap,
// whose pixels begin `shift` chunks after the stage's. A stage has all taps, or, where their pixels
// would not fit, one row of them: of `rows` stages with the same channels, each begins `row_step`
// pixels after the one before.
struct Stages {
  int steps, count, ring, products;
  int parts, filter_bytes, pixel_bytes;  // of a part of a stage
  int rows, start, row_step, reach;
  int shift[64];
  __host__ __device__ int part_bytes() const { return filter_bytes + pixel_bytes; }
  __host__ __device__ int bytes() const { return parts * part_bytes(); }
};

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
#pragma unroll 1
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

// `batch` products are queued at once.
template <class T, Form form, int batch>
__global__ void __launch_bounds__(gpu::hopper::warpgroup, 2)
    shifted(const __grid_constant__ Gather g, const __grid_constant__ Line line,
            const __grid_constant__ Stages stages, const Chunk<T>* pixels, const Chunk<T>* weights,
            const T* bias, T* out) {
  if constexpr (gpu::hopper::has_wgmma) {
    constexpr bool halves = form == Form::halves;
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Barrier full[most_slots];
    BlockIndex block;
    const int tiles = divide_up(g.m, filters);
    const int tile = block.next(tiles);
    const std::int64_t first_point =
        std::int64_t{block.next(divide_up<std::int64_t>(line.points(), tile_points))} * tile_points;
    const std::int64_t group = block.left;
    const int chunks = stages.steps * step_chunks;
    const int run = (tile_points + stages.reach) * chunk_bytes;  // pixels of one chunk
    const std::int64_t stage_filters = stages.filter_bytes / chunk_bytes;
    const std::int64_t all_filters = g.groups * tiles * stages.count * stage_filters;
    const std::int64_t all_chunks = stages.count / stages.rows * chunks;
    weights += (group * tiles + tile) * stages.count * stage_filters;
    pixels += group * all_chunks * line.size + first_point + stages.start;

    const auto fetch = [&](int stage, int at) {
      unsigned char* to = ring + at * stages.bytes();
      const int first = stage / stages.rows * chunks, row = stage % stages.rows;
      full[at].arrive_expecting(parts_of<form> * (stages.filter_bytes + chunks * run));
#pragma unroll
      for (int part = 0; part < parts_of<form>; ++part) {
        copy(to, weights + part * all_filters + stage * stage_filters, stages.filter_bytes,
             full[at]);
        const Chunk<T>* from =
            pixels + row * stages.row_step + (part * g.groups * all_chunks + first) * line.size;
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk, from += line.size)
          copy(to + stages.filter_bytes + chunk * run, from, run, full[at]);
        to += stages.part_bytes();
      }
    };
    float sums[tile_points / 2] = {}, totals[halves ? tile_points / 2 : 1] = {};
    const auto multiply = [&](int slot) {
      const unsigned char* const a = ring + slot * stages.bytes();
      const std::uint64_t filter = gpu::hopper::chunk_descriptor(a, filters * chunk_bytes, 128);
      const std::uint64_t pixel = gpu::hopper::chunk_descriptor(a + stages.filter_bytes, run, 128);
      const int low = halves ? stages.part_bytes() / chunk_bytes : 0;
#pragma unroll 1
      for (int first = 0; first < stages.products; first += batch) {
        const auto queue = [&](int filter_part, int pixel_part, bool fresh) {
#pragma unroll
          for (int i = 0; i < batch; ++i)
            gpu::hopper::multiply_along<T>(
                sums, moved(filter, filter_part + (first + i) * (step_chunks * filters)),
                moved(pixel, pixel_part + stages.shift[first + i]), !fresh || i > 0);
        };
        gpu::hopper::begin_products();
        if constexpr (halves) {
          queue(low, 0, true);
          queue(0, low, false);
        }
        queue(0, 0, false);
        gpu::hopper::end_products();
        if constexpr (halves) {
          gpu::hopper::wait_for_products<0>();
          gpu::hopper::hold(sums);
#pragma unroll
          for (int i = 0; i < tile_points / 2; ++i) totals[i] += sums[i];
        }
      }
    };
    gpu::hopper::run_stages<halves>(full, stages.ring, stages.count, threadIdx.x == 0, fetch,
                                    multiply);
    gpu::hopper::hold(sums);
    __syncthreads();
    const std::int64_t channel = group * g.m + tile * filters;
    const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
    const auto store = [&](const float(&results)[tile_points / 2]) {
      store_tile<T>(results, reinterpret_cast<T*>(ring), line, first_point, g.h.out, g.w.out,
                    g.m - tile * filters, plane * g.groups * g.m, bias ? bias + channel : nullptr,
                    out + channel * plane);
    };
    if constexpr (halves) {
      store(totals);
    } else {
      store(sums);
    }
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
  static constexpr int m_chunks = filters / 8, c_chunks = channels / 8;
  static constexpr int points = 64;  // of the line, a stage
  static constexpr int dy_bytes = m_chunks * points * chunk_bytes;
  static_assert(m_chunks + c_chunks <= warp_size);
};

// Partial sums [slice, group, filter, chunk of c, tap, c in the chunk].
template <class Tile>
__global__ void __launch_bounds__(gpu::hopper::warpgroup, 2)
    shifted_gradient(const __grid_constant__ Line line, Slices slices, int groups, int m_chunks,
                     int c_chunks, int m, int ring_stages, int stage_bytes, std::int64_t dy_size,
                     const Chunk<bf16>* x, const Chunk<bf16>* dy, float* partial) {
  if constexpr (gpu::hopper::has_wgmma) {
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Barrier full[most_slots];
    const int taps = line.h_taps * line.w_taps;
    BlockIndex block;
    const int m_first = block.next(divide_up(m_chunks, Tile::m_chunks)) * Tile::m_chunks;
    const int c_first = block.next(divide_up(c_chunks, Tile::c_chunks)) * Tile::c_chunks;
    const int tap_first = block.next(divide_up(taps, Tile::together)) * Tile::together;
    const std::int64_t group = block.next(groups);
    const std::int64_t slice = block.left;
    const TapGroup<Tile::together> tap(line, tap_first);
    const int run = (Tile::points + tap.reach) * chunk_bytes;
    const std::int64_t begin = slice * slices.length;
    const int stages = static_cast<int>(min(slices.length, dy_size / Tile::points - begin));
    const int m_here = min(Tile::m_chunks, m_chunks - m_first),
              c_here = min(Tile::c_chunks, c_chunks - c_first);
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
      } else if (i >= Tile::m_chunks && i - Tile::m_chunks < c_here) {
        const int c = i - Tile::m_chunks;
        copy(to + Tile::dy_bytes + c * run, x + c * line.size + stage * Tile::points, run,
             full[at]);
      }
    };
    float sums[Tile::together][Tile::channels / 2] = {};
    gpu::hopper::hold(sums);
    const auto multiply = [&](int slot) {
      const unsigned char* const a = ring + slot * stage_bytes;
      const std::uint64_t left =
          gpu::hopper::chunk_descriptor(a, 8 * chunk_bytes, Tile::points * chunk_bytes);
      const std::uint64_t right =
          gpu::hopper::chunk_descriptor(a + Tile::dy_bytes, 8 * chunk_bytes, run);
      gpu::hopper::begin_products();
#pragma unroll
      for (int step = 0; step < Tile::points / 16; ++step)
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
          gpu::hopper::multiply_across(sums[t], moved(left, step * 16),
                                       moved(right, step * 16 + (tap.shift[t] - tap.low)));
      gpu::hopper::end_products();
    };
    gpu::hopper::run_stages<false>(full, ring_stages, stages, threadIdx.x < warp_size, fetch,
                                   multiply);
    gpu::hopper::hold(sums);
    const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = lane_id();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t filter = m_first * 8 + warp * 16 + lane / 4 + 8 * r;
      if (filter >= m) continue;
      float* const to =
          partial + ((slice * groups + group) * m + filter) * c_chunks * taps * 8 + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < Tile::together; ++t)
#pragma unroll
        for (int c = 0; c < Tile::c_chunks; ++c)
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

bool usable(const Gather& g, Dtype dtype) {
  const std::int64_t weights = std::int64_t{g.h.kernel} * g.w.kernel * g.c * g.m;
  return compute_capability() == 90 && dtype != Dtype::f64 && g.h.stride == 1 && g.w.stride == 1 &&
         line_fits(g) && weights < std::int64_t{1} << 30 &&
         gpu::hopper::has_barriers<shifted<bf16, Form::rounded, 1>>(op);
}

// Whether three products with the zeros in tiles of so many rows and columns are less work than one
// on other cores, which half of them are where packing is worth it to sums of so many `terms`.
bool mostly_filled(const Gather& g, int rows, int cols, std::int64_t terms) {
  constexpr std::int64_t enough = 512;
  const std::int64_t filled = std::int64_t{2} * g.m * g.c - (terms < enough);
  return std::int64_t{round_up(g.m, rows)} * round_up(g.c, cols) <= filled;
}

constexpr int half_memory = 113 * 1024;  // of a multiprocessor

// As many instructions a stage as leave few zeros beyond the last channel, of all taps or of a row.
template <class T, Form form>
Stages stages_of(int channels, const Line& line, bool by_rows) {
  const int all = divide_up(channels, step_chunks * pack_size<T>);
  Stages stages{};
  stages.rows = by_rows ? line.h_taps : 1;
  const int taps = line.h_taps * line.w_taps / stages.rows;
  int steps = 1;
  for (int more = 2; more * taps <= 9 && more <= all; ++more)
    if (round_up(all, more) <= round_up(all, steps)) steps = more;
  const int across = (line.w_taps - 1) * line.w_step;
  stages.start = by_rows ? line.first + std::min(0, across) : 0;
  stages.row_step = by_rows ? line.h_step : 0;
  stages.reach = by_rows ? std::abs(across) : line.reach;
  stages.steps = steps;
  stages.count = divide_up(all, steps) * stages.rows;
  stages.products = taps * steps;
  stages.parts = parts_of<form>;
  stages.filter_bytes = stages.products * step_chunks * filters * chunk_bytes;
  stages.pixel_bytes = steps * step_chunks * (tile_points + stages.reach) * chunk_bytes;
  stages.ring = std::min(most_slots, half_memory / stages.bytes());
  for (int i = 0; i < stages.products && stages.products <= int{std::size(stages.shift)}; ++i)
    stages.shift[i] = line.first + i / steps / line.w_taps * line.h_step +
                      i / steps % line.w_taps * line.w_step - stages.start +
                      i % steps * step_chunks * (tile_points + stages.reach);
  return stages;
}

// f(constant) with the largest of some that divides n.
template <class F>
void with_batch(int n, F f) {
  bool done = false;
  const auto one_of = [&](auto batch) {
    if (!done && n % decltype(batch)::value == 0) {
      done = true;
      f(batch);
    }
  };
  one_of(std::integral_constant<int, 9>{});
  one_of(std::integral_constant<int, 7>{});
  one_of(std::integral_constant<int, 6>{});
  one_of(std::integral_constant<int, 5>{});
  one_of(std::integral_constant<int, 4>{});
  one_of(std::integral_constant<int, 3>{});
  one_of(std::integral_constant<int, 1>{});
}

template <class T, Form form>
bool run(const Gather& g, const Tensor& in, const Tensor& weight, const Tensor& bias, Tensor& out) {
  const Line line = line_of(g, tile_points);
  const int taps = line.h_taps * line.w_taps;
  Stages stages = stages_of<T, form>(g.c, line, false);
  if (stages.ring < 2) stages = stages_of<T, form>(g.c, line, true);
  const std::int64_t tiles = divide_up(g.m, filters);
  const std::int64_t blocks =
      divide_up<std::int64_t>(line.points(), tile_points) * tiles * g.groups;
  if (stages.ring < 2 || stages.products > int{std::size(stages.shift)} ||
      blocks < multiprocessors())
    return false;
  const int chunks = stages.count / stages.rows * stages.steps * step_chunks;
  const std::int64_t size = g.groups * tiles * chunks * taps * filters;
  Tensor pixels = empty_line<T, form>(line, g.groups, chunks, in);
  Tensor weights = empty({parts_of<form>, size, pack_size<T>}, weight.options());
  const TapPacker<T, form> tap_packer{g,
                                      stages.count / stages.rows,
                                      taps,
                                      stages.steps * step_chunks,
                                      size,
                                      weight.data<T>(),
                                      reinterpret_cast<Chunk<T>*>(weights.data<T>())};
  pack(op, tap_packer,
       line_packer<T, form>(line, g.groups, g.c, chunks, g.h.in, g.w.in, in, pixels));
  const size_t rows = filters * (tile_points + 8) * sizeof(T);
  const size_t shared = std::max(size_t(stages.ring) * stages.bytes(), rows);
  with_batch(stages.products, [&](auto batch) {
    launch(op, shifted<T, form, decltype(batch)::value>, grid_of(op, blocks),
           gpu::hopper::warpgroup, shared, g, line, stages, chunks_of<T>(pixels),
           chunks_of<T>(weights), bias.defined() ? bias.data<T>() : nullptr, out.data<T>());
  });
  return true;
}

template <class Tile>
bool run_gradient(const Weights& whole, const Gather& g, const Tensor& x, const Tensor& dy,
                  Tensor& dw) {
  Line line = line_of(g, Tile::points);
  const int taps = line.h_taps * line.w_taps;
  int reach = 0;
  for (int tap = 0; tap < taps; tap += Tile::together)
    reach = std::max(reach, TapGroup<Tile::together>(line, tap).reach);
  const int stage_bytes = Tile::dy_bytes + Tile::c_chunks * (Tile::points + reach) * chunk_bytes;
  const int ring = std::min(most_slots, half_memory / stage_bytes);
  if (ring < 2) return false;
  const int m_chunks = divide_up(g.m, 8), c_chunks = divide_up(g.c, 8);
  Line dy_place = line;
  dy_place.before = 0;
  dy_place.size = round_up(line.points(), Tile::points);
  Tensor x_line = empty_line<bf16>(line, g.groups, c_chunks, x);
  Tensor dy_line = empty_line<bf16>(dy_place, g.groups, m_chunks, dy);
  pack(op,
       line_packer<bf16, Form::rounded>(line, g.groups, g.c, c_chunks, g.h.in, g.w.in, x, x_line),
       line_packer<bf16, Form::rounded>(dy_place, g.groups, g.m, m_chunks, g.h.out, g.w.out, dy,
                                        dy_line));
  const std::int64_t tiles = std::int64_t{divide_up(g.m, filters)} *
                             divide_up(c_chunks, Tile::c_chunks) * divide_up(taps, Tile::together) *
                             g.groups;
  const Slices slices(dy_place.size / Tile::points, 2 * multiprocessors() / tiles);
  const std::int64_t size = std::int64_t{g.groups} * g.m * c_chunks * 8 * taps;
  Tensor partial = empty({slices.count, size}, {Dtype::f32, dw.device()});
  launch(op, shifted_gradient<Tile>, grid_of(op, tiles * slices.count), gpu::hopper::warpgroup,
         size_t(ring) * stage_bytes, line, slices, g.groups, m_chunks, c_chunks, g.m, ring,
         stage_bytes, dy_place.size, chunks_of<bf16>(x_line), chunks_of<bf16>(dy_line),
         partial.data<float>());
  launch_add_filter_slices<bf16>(op, whole, slices.count, c_chunks, partial, x, dy, dw);
  return true;
}

}  // namespace

bool gpu::hopper::convolve(const Conv2dSize& size, bool transposed, const Tensor& in,
                           const Tensor& weight, const Tensor& bias, Tensor& out) {
  const Gather g = gather_of(op, size, transposed);
  if (!usable(g, out.dtype()) || g.m <= 16 || in_place<bf16>(g) ||
      !worth_packing(out.numel() * g.c * g.h.kernel * g.w.kernel))
    return false;
  if (out.dtype() == Dtype::bf16) return run<bf16, Form::rounded>(g, in, weight, bias, out);
  if (tf32_allowed()) return run<float, Form::rounded>(g, in, weight, bias, out);
  return mostly_filled(g, filters, step_chunks * pack_size<float>,
                       std::int64_t{g.c} * g.h.kernel * g.w.kernel) &&
         run<float, Form::halves>(g, in, weight, bias, out);
}

bool gpu::hopper::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy,
                                  Tensor& dw) {
  const Gather g = gather_of(op, size, false);
  const int taps = g.h.kernel * g.w.kernel;
  if (!usable(g, dw.dtype()) || g.m <= 16 || g.c <= 16 || taps < 2 ||
      !worth_packing(dy.numel() * g.c * taps))
    return false;
  const Weights whole = weights_of(op, size);
  if (dw.dtype() == Dtype::f32)
    return (tf32_allowed() || mostly_filled(g, 64, 64, dy.numel() / size.k)) &&
           weight_gradient_tf32(whole, g, x, dy, dw);
  if (g.c > 64) return run_gradient<GradientTile<128, 3>>(whole, g, x, dy, dw);
  return taps <= 3 ? run_gradient<GradientTile<64, 3>>(whole, g, x, dy, dw)
                   : run_gradient<GradientTile<64, 5>>(whole, g, x, dy, dw);
}

}  // namespace ebb
