// A convolution of stride 1 as products of tiles that are shifted, not gathered:
//
//   out[m, j] = Σ over taps, c  weight[m, c, tap] · in[c, j + shift(tap)]
//
// Operands are packed once into chunks of 16 bytes, channels of one pixel, and pixels into lines
// (line.cuh), on which a tap is a constant shift: a tile of adjacent pixels is one copy for all
// taps, and the operand of each tap begins at another chunk of the same tile.
//
// A block is one warpgroup with 64 filters, two blocks a multiprocessor. One thread begins to copy
// a stage as soon as the products with the one before have been done.
//
// Float32 without TF32 is three products of TF32, of high and low parts (chunks.cuh). As the tensor
// cores cut their sums instead of rounding them, few taps are added there, the small products
// first, and those sums in registers.
#include "ebb/ops/convolution/hopper.cuh"
#include "ebb/ops/convolution/paths.h"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int tile_points = 224;  // of a line
constexpr int step_chunks = 2;    // along k of one instruction: 16 bf16, 8 TF32

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
__global__ void __launch_bounds__(hopper::warpgroup, 2)
    shifted(const __grid_constant__ Gather g, const __grid_constant__ Line line,
            const __grid_constant__ Stages stages, const Chunk<T>* pixels, const Chunk<T>* weights,
            const T* bias, T* out) {
  if constexpr (hopper::has_wgmma) {
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
      const std::uint64_t filter = hopper::chunk_descriptor(a, filters * chunk_bytes, 128);
      const std::uint64_t pixel = hopper::chunk_descriptor(a + stages.filter_bytes, run, 128);
      const int low = halves ? stages.part_bytes() / chunk_bytes : 0;
#pragma unroll 1
      for (int first = 0; first < stages.products; first += batch) {
        const auto queue = [&](int filter_part, int pixel_part, bool fresh) {
#pragma unroll
          for (int i = 0; i < batch; ++i)
            hopper::multiply_along<T>(
                sums, moved(filter, filter_part + (first + i) * (step_chunks * filters)),
                moved(pixel, pixel_part + stages.shift[first + i]), !fresh || i > 0);
        };
        hopper::begin_products();
        if constexpr (halves) {
          queue(low, 0, true);
          queue(0, low, false);
        }
        queue(0, 0, false);
        hopper::end_products();
        if constexpr (halves) {
          hopper::wait_for_products<0>();
          hopper::hold(sums);
#pragma unroll
          for (int i = 0; i < tile_points / 2; ++i) totals[i] += sums[i];
        }
      }
    };
    run_stages<halves>(full, stages.ring, stages.count, threadIdx.x == 0, fetch, multiply);
    hopper::hold(sums);
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

// Launchers.

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

// f(constant) with the first of some that divides n.
template <int... some, class F>
void with_divisor(int n, F f) {
  ((n % some == 0 && (f(std::integral_constant<int, some>{}), true)) || ...);
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
  pack(tap_packer, line_packer<T, form>(line, g.groups, g.c, chunks, g.h.in, g.w.in, in, pixels));
  const size_t rows = filters * (tile_points + 8) * sizeof(T);
  const size_t shared = std::max(size_t(stages.ring) * stages.bytes(), rows);
  with_divisor<9, 7, 6, 5, 4, 3, 1>(stages.products, [&](auto batch) {
    launch(op, shifted<T, form, decltype(batch)::value>, grid_of(op, blocks), hopper::warpgroup,
           shared, g, line, stages, chunks_of<T>(pixels), chunks_of<T>(weights),
           bias.defined() ? bias.data<T>() : nullptr, out.data<T>());
  });
  return true;
}

}  // namespace

bool hopper::convolve(const Conv2dSize& size, bool transposed, const Tensor& in,
                      const Tensor& weight, const Tensor& bias, Tensor& out) {
  const Gather g = gather_of(size, transposed);
  if (!usable<shifted<bf16, Form::rounded, 1>>(g, out.dtype()) || g.m <= 16 ||
      !worth_packing(out.numel() * g.c * g.h.kernel * g.w.kernel))
    return false;
  if (out.dtype() == Dtype::bf16) return run<bf16, Form::rounded>(g, in, weight, bias, out);
  if (tf32_allowed()) return run<float, Form::rounded>(g, in, weight, bias, out);
  return mostly_filled(g, filters, step_chunks * pack_size<float>,
                       std::int64_t{g.c} * g.h.kernel * g.w.kernel) &&
         run<float, Form::halves>(g, in, weight, bias, out);
}

}  // namespace ebb::gpu
