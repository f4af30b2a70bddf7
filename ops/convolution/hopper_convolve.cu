// A convolution of stride 1 as products of tiles that are shifted, not gathered:
//
//   out[m, j] = Σ over taps, c  weight[m, c, tap] · in[c, j + shift(tap)]
//
// Operands are packed once into chunks of 16 bytes, channels of one pixel, and pixels into lines
// (line.cuh), on which a tap is a constant shift: a tile of adjacent pixels is one copy for all
// taps, and the operand of each tap begins at another chunk of the same tile.
//
// A block is one warpgroup with 64 filters, two blocks a multiprocessor. One thread begins to copy
// a stage as soon as the products with the one before have been done. Where tiles are few, a
// cluster of blocks makes each: every block has a slice of the stages, and of the points to add up
// and write.
//
// Float32 without TF32 is three products of TF32, of high and low parts (chunks.cuh). As the tensor
// cores cut their sums instead of rounding them, few taps are added there, the small products
// first, and those sums in registers.
#include "ebb/ops/convolution/hopper.cuh"
#include "ebb/ops/convolution/paths.h"

#include "ebb/ops/together.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

constexpr int tile_points = 224;  // of a line
constexpr int step_chunks = 2;    // along k of one instruction: 16 bf16, 8 TF32

// Weights → [group, tile of filters, stage, tap, chunk, filter], zeros beyond; `chunks` of a stage.
// Threads side by side have taps of four filters: what is adjacent in memory, before and after.
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
    const int tiles = divide_up(g.m, filters), quads = tiles * (filters / 4);
    const bool m_adjacent = g.m_stride < g.c_stride;
    BlockIndex place{i};
    int m = place.next(4);
    const int tap = place.next(taps);
    if (m_adjacent) m += 4 * place.next(quads);
    const int chunk = place.next(stages * chunks);
    if (!m_adjacent) m += 4 * place.next(quads);
    const std::int64_t group = place.left;
    const int first = chunk * pack_size<T>;
    const T* from = weight + group * g.m * g.c * taps + m * g.m_stride + first * g.c_stride + tap;
    FormedChunk<T, form> out;
#pragma unroll
    for (int e = 0; e < pack_size<T>; ++e)
      if (m < g.m && first + e < g.c) out.set(e, from[e * g.c_stride]);
    const std::int64_t stage = (group * tiles + m / filters) * stages + chunk / chunks;
    out.store(packed + ((stage * taps + tap) * chunks + chunk % chunks) * filters + m % filters,
              size);
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
  int slices;  // that the stages are cut into, the blocks of a cluster
  int shift[64];
  __host__ __device__ int part_bytes() const { return filter_bytes + pixel_bytes; }
  __host__ __device__ int bytes() const { return parts * part_bytes(); }
};

// Writes rows of a tile to out through shared memory, so that adjacent points are written together.
// Each warp has 16 rows of its own, and of 32 points each the slice has every `slices`-th.
template <class Out>
__device__ void store_tile(const float (&sums)[tile_points / 2], Out* rows, const Line& line,
                           std::int64_t first_point, int height, int width, int left,
                           std::int64_t image_stride, int slice, int slices, const Out* bias,
                           Out* out) {
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
  for (int c = slice; c < tile_points / warp_size; c += slices) {
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

// The blocks of a cluster, each with a slice of the sums, add them up in their order: each those of
// some columns of 32 points, which it then has.
__device__ void add_over_cluster(float (&sums)[tile_points / 2], float* memory, int slice,
                                 int slices) {
#if __CUDA_ARCH__ >= 900
  if (slices == 1) return;
  constexpr int each = 16;  // sums of 32 points that a thread has
  const auto cluster = cooperative_groups::this_cluster();
  float* const mine = memory + threadIdx.x;
#pragma unroll
  for (int i = 0; i < tile_points / 2; ++i) mine[i * hopper::warpgroup] = sums[i];
  cluster.sync();
#pragma unroll
  for (int first = 0; first < tile_points / 2; first += each) {
    if (first / each % slices != slice) continue;
    float all[each] = {};
    for (int from = 0; from < slices; ++from) {
      const float* const theirs = cluster.map_shared_rank(mine, from);
#pragma unroll
      for (int i = 0; i < each; ++i) all[i] += theirs[(first + i) * hopper::warpgroup];
    }
#pragma unroll
    for (int i = 0; i < each; ++i) sums[first + i] = all[i];
  }
  cluster.sync();  // all have been read
#endif
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
    const int slice = block.next(stages.slices);
    const int begin = slice * stages.count / stages.slices;
    const int count = (slice + 1) * stages.count / stages.slices - begin;
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

    const auto fetch = [&](int from_begin, int at) {
      const int stage = begin + from_begin;
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
    run_stages<halves>(full, stages.ring, count, threadIdx.x == 0, fetch, multiply);
    hopper::hold(sums);
    __syncthreads();
    const std::int64_t channel = group * g.m + tile * filters;
    const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
    const auto store = [&](float(&results)[tile_points / 2]) {
      add_over_cluster(results, reinterpret_cast<float*>(ring), slice, stages.slices);
      store_tile<T>(results, reinterpret_cast<T*>(ring), line, first_point, g.h.out, g.w.out,
                    g.m - tile * filters, plane * g.groups * g.m, slice, stages.slices,
                    bias ? bias + channel : nullptr, out + channel * plane);
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

// How many slices take the least time, for so many blocks of `products` instructions. Two blocks
// that share a multiprocessor take less than twice the time of one, and a block's begin and end as
// long as `ends`. Clusters of 8 do not find each multiprocessor twice; their whole waves count as
// if they did, as they wait for room.
int slices_of(std::int64_t blocks, int stages, int products) {
  constexpr double alone = 1.35;
  constexpr int ends = 90;
  int best = 1;
  double shortest = std::numeric_limits<double>::max();
  for (int slices = 1; slices <= std::min(8, stages); slices *= 2) {
    const std::int64_t n = blocks * slices, at_once = (slices < 8 ? 2 : 1) * multiprocessors();
    const std::int64_t left = n % at_once;
    const double last = left > multiprocessors() ? 2 : left > 0 ? alone : 0;
    const double time = (2 * static_cast<double>(n / at_once) + last) *
                        (divide_up(stages, slices) * products + ends);
    if (time < shortest) best = slices, shortest = time;
  }
  return best;
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
  constexpr int each = form == Form::halves ? 3 : 1;
  stages.slices = slices_of(blocks, stages.count, stages.products * each);
  if (stages.ring < 2 || stages.products > int{std::size(stages.shift)}) return false;
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
  const size_t sums = stages.slices == 1 ? 0 : filters * tile_points * sizeof(float);
  const size_t shared = std::max({size_t(stages.ring) * stages.bytes(), rows, sums});
  with_divisor<9, 7, 6, 5, 4, 3, 1>(stages.products, [&](auto batch) {
    const Together together{grid_of(op, blocks * stages.slices).x, hopper::warpgroup, shared,
                            static_cast<unsigned>(stages.slices)};
    launch_together(op, shifted<T, form, decltype(batch)::value>, together, g, line, stages,
                    chunks_of<T>(pixels), chunks_of<T>(weights),
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
