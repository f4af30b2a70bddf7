// The weight gradient of a convolution of stride 1 in float32 on Hopper, over lines as in
// hopper_convolve.cu:
//
//   dw[m, c, tap] = Σ over j  dy[m, j] · x[c, j + shift(tap)]
//
// wgmma takes TF32 along k only, here pixels, and from shared memory only whole chunks, of four of
// them: so one operand lies there as it is, and the other one, which a tap shifts by any number of
// pixels, is read into registers, as the left operand. Without TF32 that is where it is parted into
// high and low, and the tensor cores add what one stage has.
//
// The left operand, of 64 rows, is x, or, where x has no more than 32 channels, dy: it is shifted
// the other way then. Below, rows are its channels and columns those of the other one.
#include "ebb/ops/convolution/hopper.cuh"
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/second_stage.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

// 64 rows × `cols`, for three taps at once. A block is one warpgroup.
template <int cols_, Form form_>
struct Tf32Tile {
  static constexpr int cols = cols_;
  static constexpr Form form = form_;
  static constexpr bool halves = form == Form::halves;
  static constexpr int rows = 64;
  static constexpr int together = 3;
  static constexpr int points = 32;  // of the line, a stage
  static constexpr int part_bytes = points / 4 * cols * chunk_bytes;
  static constexpr int right_bytes = parts_of<form> * part_bytes;
  // Of the left chunks that a stage needs, wherever in the first one it begins.
  __host__ __device__ static int left_bytes(int reach) {
    return (points + reach + 6) / 4 * rows * chunk_bytes;
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
  __host__ __device__ std::int64_t chunks() const { return round_up(line.size + 16, 32) / 4; }
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
  Line line;  // of the left operand
  int groups, rows, cols, c_chunks, ring, stage_bytes;
  bool filters_left;  // rows are filters, columns channels
  std::int64_t left_chunks, right_chunks, stages;
  __host__ __device__ int filters() const { return filters_left ? rows : cols; }
  // With what is stored of channels beyond the last.
  __host__ __device__ int stored_rows() const { return filters_left ? rows : c_chunks * 4; }
  __host__ __device__ int stored_cols() const { return filters_left ? c_chunks * 4 : cols; }
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
__global__ void __launch_bounds__(hopper::warpgroup, 2)
    shifted_gradient_tf32(const __grid_constant__ Sizes g, Slices slices, const Chunk<float>* left,
                          const Chunk<float>* right, float* partial) {
  if constexpr (hopper::has_wgmma) {
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Barrier full[most_slots];
    const int taps = g.line.h_taps * g.line.w_taps;
    const int col_tiles = divide_up(g.cols, Tile::cols);
    const int row_tiles = divide_up(g.rows, Tile::rows);
    BlockIndex block;
    const int col_tile = block.next(col_tiles), row_tile = block.next(row_tiles);
    const int tap_first = block.next(divide_up(taps, Tile::together)) * Tile::together;
    const std::int64_t group = block.next(g.groups);
    const std::int64_t slice = block.left;
    const TapGroup<Tile::together> tap(g.line, tap_first);
    const std::int64_t begin = slice * slices.length;
    const int stages = static_cast<int>(min(slices.length, g.stages - begin));
    const int left_size = Tile::left_bytes(tap.reach);
    const std::int64_t low = g.groups * col_tiles * g.right_chunks * Tile::cols;
    right +=
        ((group * col_tiles + col_tile) * g.right_chunks + begin * (Tile::points / 4)) * Tile::cols;
    left += ((group * row_tiles + row_tile) * g.left_chunks + begin * (Tile::points / 4) +
             tap.low / 4) *
            Tile::rows;

    const auto fetch = [&](std::int64_t stage, int at) {
      unsigned char* const to = ring + at * g.stage_bytes;
      full[at].arrive_expecting(Tile::right_bytes + left_size);
#pragma unroll
      for (int part = 0; part < parts_of<Tile::form>; ++part)
        hopper::copy(to + part * Tile::part_bytes,
                     right + part * low + stage * (Tile::points / 4 * Tile::cols), Tile::part_bytes,
                     full[at]);
      hopper::copy(to + Tile::right_bytes, left + stage * (Tile::points / 4 * Tile::rows),
                   left_size, full[at]);
    };
    const int row = static_cast<int>(threadIdx.x) / warp_size * 16 + lane_id() / 4;
    int from[Tile::together];  // of the thread's first left number at a tap
#pragma unroll
    for (int t = 0; t < Tile::together; ++t) {
      const int pixel = lane_id() % 4 + tap.shift[t] - tap.low / 4 * 4;
      from[t] = (pixel / 4 * Tile::rows + row) * 4 + pixel % 4;
    }
    float sums[Tile::together][Tile::cols / 2] = {};
    float totals[Tile::halves ? Tile::together : 1][Tile::cols / 2] = {};
    hopper::hold(sums);
    unsigned a[2][Tile::together][4];  // of two steps, or high and low
    const auto multiply = [&](int slot) {
      const unsigned char* const at = ring + slot * g.stage_bytes;
      const auto* const pixels = reinterpret_cast<const unsigned*>(at + Tile::right_bytes);
      const std::uint64_t chunks =
          hopper::chunk_descriptor(at, Tile::cols * chunk_bytes, 8 * chunk_bytes);
#pragma unroll
      for (int step = 0; step < Tile::points / 8; ++step) {
        unsigned(&now)[Tile::together][4] = a[Tile::halves ? 0 : step % 2];
        hopper::wait_for_products<!Tile::halves>();
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            now[t][i] = pixels[from[t] + (2 * step + i / 2) * Tile::rows * 4 + i % 2 * 8 * 4];
        if constexpr (Tile::halves) part(a[0], a[1]);
        const auto queue = [&](unsigned(&numbers)[Tile::together][4], int second, bool fresh) {
#pragma unroll
          for (int t = 0; t < Tile::together; ++t)
            hopper::multiply_tf32(
                sums[t], numbers[t],
                hopper::moved(chunks,
                              step * 2 * Tile::cols + second * (Tile::part_bytes / chunk_bytes)),
                !fresh);
        };
        hopper::begin_products();
        if constexpr (Tile::halves) {
          queue(a[1], 0, step == 0);
          queue(a[0], 1, false);
        }
        queue(now, 0, false);
        hopper::end_products();
      }
      if constexpr (Tile::halves) {
        hopper::wait_for_products<0>(sums);
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
#pragma unroll
          for (int i = 0; i < Tile::cols / 2; ++i) totals[t][i] += sums[t][i];
      }
    };
    run_stages<Tile::halves>(full, g.ring, stages, threadIdx.x == 0, fetch, multiply);
    hopper::hold(sums);
    const auto result = [&](int t, int i) { return Tile::halves ? totals[t][i] : sums[t][i]; };

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int own = row_tile * Tile::rows + row + 8 * r;
      if (own >= g.stored_rows()) continue;
#pragma unroll
      for (int i = 0; i < Tile::cols / 4; ++i) {
        const int col = col_tile * Tile::cols + lane_id() % 4 * 2 + i / 2 * 8 + i % 2;
        if (col >= g.stored_cols()) continue;
        const int m = g.filters_left ? own : col, c = g.filters_left ? col : own;
        const std::int64_t filter = (slice * g.groups + group) * g.filters() + m;
        float* const to = partial + ((filter * g.c_chunks + c / 4) * taps + tap_first) * 4 + c % 4;
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

// Where each tap shifts the other way: from x's pixels to those of dy.
Line mirrored(Line line) {
  line.before = -(line.before + line.reach);
  line.first = line.reach - line.first;
  line.h_step = -line.h_step;
  line.w_step = -line.w_step;
  return line;
}

template <class Tile, bool filters_left = false>
bool run(const Weights& whole, const Gather& g, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const Line x_line = line_of(g, Tile::points), line = filters_left ? mirrored(x_line) : x_line;
  const int taps = line.h_taps * line.w_taps;
  int reach = 0;
  for (int tap = 0; tap < taps; tap += Tile::together)
    reach = std::max(reach, TapGroup<Tile::together>(line, tap).reach);
  Line right_line = line;
  right_line.before = 0;
  right_line.size = round_up(line.points(), Tile::points);
  Sizes sizes{};
  sizes.line = line;
  sizes.groups = g.groups;
  sizes.rows = filters_left ? g.m : g.c;
  sizes.cols = filters_left ? g.c : g.m;
  sizes.c_chunks = divide_up(g.c, 4);
  sizes.filters_left = filters_left;
  sizes.stage_bytes = Tile::right_bytes + Tile::left_bytes(reach);
  sizes.stages = right_line.size / Tile::points;
  sizes.ring = std::min(most_slots, half_memory / sizes.stage_bytes);
  if (sizes.ring < 2) return false;
  const auto packer = [&]<Form form>(const Line& on, bool of_dy, int tile) {
    return PixelPacker<form>{on,
                             g.groups,
                             of_dy ? g.m : g.c,
                             of_dy ? g.h.out : g.h.in,
                             of_dy ? g.w.out : g.w.in,
                             tile,
                             (of_dy ? dy : x).data<float>(),
                             nullptr};
  };
  constexpr Form left_form = Tile::halves ? Form::as_is : Form::rounded;
  auto pack_left = packer.template operator()<left_form>(line, filters_left, Tile::rows);
  auto pack_right = packer.template operator()<Tile::form>(right_line, !filters_left, Tile::cols);
  const auto make = [&](auto& packs, std::int64_t& chunks, int parts) {
    chunks = packs.chunks();
    Tensor packed = empty({parts, packs.groups, packs.tiles(), chunks, packs.tile, 4}, x.options());
    packs.packed = reinterpret_cast<Chunk<float>*>(packed.data<float>());
    return packed;
  };
  const Tensor left = make(pack_left, sizes.left_chunks, 1),
               right = make(pack_right, sizes.right_chunks, parts_of<Tile::form>);
  pack(pack_left, pack_right);
  const std::int64_t tiles = std::int64_t{divide_up(sizes.cols, Tile::cols)} *
                             divide_up(sizes.rows, Tile::rows) * divide_up(taps, Tile::together) *
                             g.groups;
  const std::int64_t accurate = Tile::halves ? divide_up<std::int64_t>(right_line.size, 4096) : 1;
  const Slices slices = soonest_slices(tiles, sizes.stages, accurate);
  const std::int64_t size = std::int64_t{g.groups} * g.m * sizes.c_chunks * 4 * taps;
  Tensor partial = empty({slices.count, size}, dw.options());
  launch(op, shifted_gradient_tf32<Tile>, grid_of(op, tiles * slices.count), hopper::warpgroup,
         size_t(sizes.ring) * sizes.stage_bytes, sizes, slices, chunks_of<float>(left),
         chunks_of<float>(right), partial.data<float>());
  launch_add_filter_slices<float>(whole, slices.count, sizes.c_chunks, partial, x, dy, dw);
  return true;
}

}  // namespace

bool hopper::weight_gradient_tf32(const Weights& whole, const Gather& g, const Tensor& x,
                                  const Tensor& dy, Tensor& dw) {
  constexpr Form exact = Form::halves, rounded = Form::rounded;
  const bool tf32 = tf32_allowed();
  if (g.c <= 32)
    return tf32 ? run<Tf32Tile<32, rounded>, true>(whole, g, x, dy, dw)
                : run<Tf32Tile<32, exact>, true>(whole, g, x, dy, dw);
  if (!tf32) return run<Tf32Tile<64, exact>>(whole, g, x, dy, dw);
  return g.m <= 64 ? run<Tf32Tile<64, rounded>>(whole, g, x, dy, dw)
                   : run<Tf32Tile<128, rounded>>(whole, g, x, dy, dw);
}

}  // namespace ebb::gpu
