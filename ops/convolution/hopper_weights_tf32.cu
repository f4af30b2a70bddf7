// The weight gradient of a convolution of stride 1 in float32 on Hopper, over lines as in
// hopper_convolve.cu:
//
//   dw[m, c, tap] = Σ over j  dy[m, j] · x[c, j + shift(tap)]
//
// wgmma takes TF32 along k only, here pixels, and from shared memory only whole chunks, of four of
// them: so dy lies there as it is, and x, which a tap shifts by any number of pixels, is read into
// registers, as the left operand. Without TF32 that is where x is parted into high and low, and the
// tensor cores add what one stage has.
#include "ebb/ops/convolution/hopper.cuh"
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/second_stage.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::convolution;
using gpu::hopper::Barrier;
using gpu::hopper::chunk_bytes;
using gpu::hopper::half_memory;
using gpu::hopper::most_slots;

constexpr std::string_view op = "conv2d";

// 64 channels × `filters`, for three taps at once. A block is one warpgroup.
template <int filters_, Form form_>
struct Tf32Tile {
  static constexpr int filters = filters_;
  static constexpr Form form = form_;
  static constexpr bool halves = form == Form::halves;
  static constexpr int channels = 64;
  static constexpr int together = 3;
  static constexpr int points = 32;  // of the line, a stage
  static constexpr int part_bytes = points / 4 * filters * chunk_bytes;
  static constexpr int dy_bytes = parts_of<form> * part_bytes;
  // Of the chunks of x that a stage needs, wherever in the first one it begins.
  __host__ __device__ static int x_bytes(int reach) {
    return (points + reach + 6) / 4 * channels * chunk_bytes;
  }
};

// x [images, groups, channels, height, width] → [groups, tile of channels, chunk of four pixels of
// the line, channel], zeros where there is no pixel; all high parts before all low ones. A warp
// packs 8 channels × 4 chunks.
template <Form form>
struct PixelPacker {
  Line line;
  int groups, channels, height, width, tile;
  const float* x;
  Chunk<float>* packed;

  __host__ __device__ int tiles() const { return divide_up(channels, tile); }
  // A stage may read past the last pixel.
  __host__ __device__ std::int64_t chunks() const { return round_up(line.size + 16, 16) / 4; }
  __host__ __device__ std::int64_t blocks() const {
    return chunks() / 4 * (tiles() * tile / 8) * groups / (pack_threads / warp_size);
  }

  __device__ void pack(std::int64_t index) const {
    BlockIndex warp{index * (pack_threads / warp_size) + threadIdx.x / warp_size};
    const std::int64_t chunk = warp.next(chunks() / 4) * std::int64_t{4} + lane_id() / 8;
    const int channel = warp.next(tiles() * tile / 8) * 8 + lane_id() % 8;
    const std::int64_t group = warp.left;
    // From an image before the first, as a line may begin before it.
    const auto place = static_cast<unsigned>(chunk * 4 + line.before + line.height * line.width);
    const auto across = static_cast<unsigned>(line.width),
               down = static_cast<unsigned>(line.height);
    unsigned w = place % across, h = place / across % down, image = place / across / down - 1;
    FormedChunk<float, form> out;
    const float* from = x + (group * channels + channel) * height * width;
    const std::int64_t images_apart = std::int64_t{groups} * channels * height * width;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (image < line.images && h < height && w < width && channel < channels)
        out.set(e, from[image * images_apart + (std::int64_t{h} * width + w)]);
      if (++w < across) continue;
      w = 0;
      if (++h < down) continue;
      h = 0;
      ++image;
    }
    out.store(
        packed + ((group * tiles() + channel / tile) * chunks() + chunk) * tile + channel % tile,
        groups * tiles() * chunks() * tile);
  }
};

struct Sizes {
  Line line;
  int groups, filters, channels, c_chunks, ring, stage_bytes;
  std::int64_t x_chunks, dy_chunks, stages;
};

// x → high, low.
template <int n>
__device__ void part(unsigned (&x)[n][4], unsigned (&low)[n][4]) {
#pragma unroll
  for (int t = 0; t < n; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float whole = __uint_as_float(x[t][i]), high = to_tf32(whole);
      x[t][i] = __float_as_uint(high);
      low[t][i] = __float_as_uint(to_tf32(whole - high));
    }
}

// Partial sums [slice, group, filter, chunk of c, tap, c in the chunk].
template <class Tile>
__global__ void __launch_bounds__(gpu::hopper::warpgroup, 2)
    shifted_gradient_tf32(const __grid_constant__ Sizes g, Slices slices, const Chunk<float>* x,
                          const Chunk<float>* dy, float* partial) {
  if constexpr (gpu::hopper::has_wgmma) {
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Barrier full[most_slots];
    const int taps = g.line.h_taps * g.line.w_taps;
    const int m_tiles = divide_up(g.filters, Tile::filters);
    const int c_tiles = divide_up(g.channels, Tile::channels);
    BlockIndex block;
    const int m_tile = block.next(m_tiles), c_tile = block.next(c_tiles);
    const int tap_first = block.next(divide_up(taps, Tile::together)) * Tile::together;
    const std::int64_t group = block.next(g.groups);
    const std::int64_t slice = block.left;
    const TapGroup<Tile::together> tap(g.line, tap_first);
    const std::int64_t begin = slice * slices.length;
    const int stages = static_cast<int>(min(slices.length, g.stages - begin));
    const int x_bytes = Tile::x_bytes(tap.reach);
    const std::int64_t low = g.groups * m_tiles * g.dy_chunks * Tile::filters;
    dy += ((group * m_tiles + m_tile) * g.dy_chunks + begin * (Tile::points / 4)) * Tile::filters;
    x += ((group * c_tiles + c_tile) * g.x_chunks + begin * (Tile::points / 4) + tap.low / 4) *
         Tile::channels;

    const auto fetch = [&](std::int64_t stage, int at) {
      unsigned char* const to = ring + at * g.stage_bytes;
      full[at].arrive_expecting(Tile::dy_bytes + x_bytes);
#pragma unroll
      for (int part = 0; part < parts_of<Tile::form>; ++part)
        gpu::hopper::copy(to + part * Tile::part_bytes,
                          dy + part * low + stage * (Tile::points / 4 * Tile::filters),
                          Tile::part_bytes, full[at]);
      gpu::hopper::copy(to + Tile::dy_bytes, x + stage * (Tile::points / 4 * Tile::channels),
                        x_bytes, full[at]);
    };
    const int row = static_cast<int>(threadIdx.x) / warp_size * 16 + lane_id() / 4;
    int from[Tile::together];  // of the thread's first number of x at a tap
#pragma unroll
    for (int t = 0; t < Tile::together; ++t) {
      const int pixel = lane_id() % 4 + tap.shift[t] - tap.low / 4 * 4;
      from[t] = (pixel / 4 * Tile::channels + row) * 4 + pixel % 4;
    }
    float sums[Tile::together][Tile::filters / 2] = {};
    float totals[Tile::halves ? Tile::together : 1][Tile::filters / 2] = {};
    gpu::hopper::hold(sums);
    unsigned a[2][Tile::together][4];  // of two steps, or high and low
    const auto multiply = [&](int slot) {
      const unsigned char* const at = ring + slot * g.stage_bytes;
      const auto* const pixels = reinterpret_cast<const unsigned*>(at + Tile::dy_bytes);
      const std::uint64_t right =
          gpu::hopper::chunk_descriptor(at, Tile::filters * chunk_bytes, 8 * chunk_bytes);
#pragma unroll
      for (int step = 0; step < Tile::points / 8; ++step) {
        unsigned(&now)[Tile::together][4] = a[Tile::halves ? 0 : step % 2];
        gpu::hopper::wait_for_products<!Tile::halves>();
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            now[t][i] = pixels[from[t] + (2 * step + i / 2) * Tile::channels * 4 + i % 2 * 8 * 4];
        if constexpr (Tile::halves) part(a[0], a[1]);
        const auto queue = [&](unsigned(&left)[Tile::together][4], int second, bool fresh) {
#pragma unroll
          for (int t = 0; t < Tile::together; ++t)
            gpu::hopper::multiply_tf32(
                sums[t], left[t],
                gpu::hopper::moved(
                    right, step * 2 * Tile::filters + second * (Tile::part_bytes / chunk_bytes)),
                !fresh);
        };
        gpu::hopper::begin_products();
        if constexpr (Tile::halves) {
          queue(a[1], 0, step == 0);
          queue(a[0], 1, false);
        }
        queue(now, 0, false);
        gpu::hopper::end_products();
      }
      if constexpr (Tile::halves) {
        gpu::hopper::wait_for_products<0>(sums);
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
#pragma unroll
          for (int i = 0; i < Tile::filters / 2; ++i) totals[t][i] += sums[t][i];
      }
    };
    gpu::hopper::run_stages<Tile::halves>(full, g.ring, stages, threadIdx.x == 0, fetch, multiply);
    gpu::hopper::hold(sums);
    const auto result = [&](int t, int i) { return Tile::halves ? totals[t][i] : sums[t][i]; };

    const int m_first = m_tile * Tile::filters + lane_id() % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int c = c_tile * Tile::channels + row + 8 * r;
      if (c >= g.c_chunks * 4) continue;
#pragma unroll
      for (int i = 0; i < Tile::filters / 4; ++i) {
        const int m = m_first + i / 2 * 8 + i % 2;
        if (m >= g.filters) continue;
        float* const to =
            partial +
            ((((slice * g.groups + group) * g.filters + m) * g.c_chunks + c / 4) * taps +
             tap_first) *
                4 +
            c % 4;
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
          if (tap_first + t < taps) to[t * 4] = result(t, i / 2 * 4 + r * 2 + i % 2);
      }
    }
  } else {
    __trap();
  }
}

// Launchers.

template <class Tile>
bool run(const Weights& whole, const Gather& g, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const Line line = line_of(g, Tile::points);
  const int taps = line.h_taps * line.w_taps;
  int reach = 0;
  for (int tap = 0; tap < taps; tap += Tile::together)
    reach = std::max(reach, TapGroup<Tile::together>(line, tap).reach);
  Line dy_line = line;
  dy_line.before = 0;
  dy_line.size = round_up(line.points(), Tile::points);
  Sizes sizes{line,
              g.groups,
              g.m,
              g.c,
              divide_up(g.c, 4),
              0,
              Tile::dy_bytes + Tile::x_bytes(reach),
              0,
              0,
              dy_line.size / Tile::points};
  sizes.ring = std::min(most_slots, half_memory / sizes.stage_bytes);
  if (sizes.ring < 2) return false;
  constexpr Form x_form = Tile::halves ? Form::as_is : Form::rounded;
  PixelPacker<x_form> pack_x{line,           g.groups,        g.c,    g.h.in, g.w.in,
                             Tile::channels, x.data<float>(), nullptr};
  PixelPacker<Tile::form> pack_dy{dy_line,       g.groups,         g.m,    g.h.out, g.w.out,
                                  Tile::filters, dy.data<float>(), nullptr};
  const auto make = [&](auto& packer, std::int64_t& chunks, int parts) {
    chunks = packer.chunks();
    Tensor packed =
        empty({parts, packer.groups, packer.tiles(), chunks, packer.tile, 4}, x.options());
    packer.packed = reinterpret_cast<Chunk<float>*>(packed.data<float>());
    return packed;
  };
  const Tensor x_packed = make(pack_x, sizes.x_chunks, 1),
               dy_packed = make(pack_dy, sizes.dy_chunks, parts_of<Tile::form>);
  pack(op, pack_x, pack_dy);
  const std::int64_t tiles = std::int64_t{divide_up(g.m, Tile::filters)} *
                             divide_up(g.c, Tile::channels) * divide_up(taps, Tile::together) *
                             g.groups;
  const std::int64_t accurate = Tile::halves ? divide_up<std::int64_t>(dy_line.size, 4096) : 1;
  const Slices slices(sizes.stages, std::max(accurate, 2 * multiprocessors() / tiles));
  const std::int64_t size = std::int64_t{g.groups} * g.m * sizes.c_chunks * 4 * taps;
  Tensor partial = empty({slices.count, size}, dw.options());
  launch(op, shifted_gradient_tf32<Tile>, grid_of(op, tiles * slices.count), gpu::hopper::warpgroup,
         size_t(sizes.ring) * sizes.stage_bytes, sizes, slices, chunks_of<float>(x_packed),
         chunks_of<float>(dy_packed), partial.data<float>());
  launch_add_filter_slices<float>(op, whole, slices.count, sizes.c_chunks, partial, x, dy, dw);
  return true;
}

}  // namespace

bool gpu::hopper::weight_gradient_tf32(const Weights& whole, const Gather& g, const Tensor& x,
                                       const Tensor& dy, Tensor& dw) {
  if (!tf32_allowed()) return run<Tf32Tile<64, Form::halves>>(whole, g, x, dy, dw);
  return g.m <= 64 ? run<Tf32Tile<64, Form::rounded>>(whole, g, x, dy, dw)
                   : run<Tf32Tile<128, Form::rounded>>(whole, g, x, dy, dw);
}

}  // namespace ebb
