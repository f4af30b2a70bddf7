// The weight gradient of a convolution of stride 1 in bf16 on Hopper, over lines as in
// hopper_convolve.cu:
//
//   dw[m, c, tap] = Σ over j  dy[m, j] · x[c, j + shift(tap)]
//
// Several taps share their pixels: a block has 64 filters, some channels, and sums of each of them.
// One warp begins to copy a stage as soon as the products with the one before have been done.
#include "ebb/ops/convolution/hopper.cuh"
#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/convolution/second_stage.cuh"

namespace ebb::gpu {
namespace {

using namespace convolution;

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
__global__ void __launch_bounds__(hopper::warpgroup, 2)
    shifted_gradient(const __grid_constant__ Line line, Slices slices, int groups, int m_chunks,
                     int c_chunks, int m, int ring_stages, int stage_bytes, std::int64_t dy_size,
                     const Chunk<bf16>* x, const Chunk<bf16>* dy, float* partial) {
  if constexpr (hopper::has_wgmma) {
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
    hopper::hold(sums);
    const auto multiply = [&](int slot) {
      const unsigned char* const a = ring + slot * stage_bytes;
      const std::uint64_t left =
          hopper::chunk_descriptor(a, 8 * chunk_bytes, Tile::points * chunk_bytes);
      const std::uint64_t right =
          hopper::chunk_descriptor(a + Tile::dy_bytes, 8 * chunk_bytes, run);
      hopper::begin_products();
#pragma unroll
      for (int step = 0; step < Tile::points / 16; ++step)
#pragma unroll
        for (int t = 0; t < Tile::together; ++t)
          hopper::multiply_across(sums[t], moved(left, step * 16),
                                  moved(right, step * 16 + (tap.shift[t] - tap.low)));
      hopper::end_products();
    };
    run_stages<false>(full, ring_stages, stages, threadIdx.x < warp_size, fetch, multiply);
    hopper::hold(sums);
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
  pack(line_packer<bf16, Form::rounded>(line, g.groups, g.c, c_chunks, g.h.in, g.w.in, x, x_line),
       line_packer<bf16, Form::rounded>(dy_place, g.groups, g.m, m_chunks, g.h.out, g.w.out, dy,
                                        dy_line));
  const std::int64_t tiles = std::int64_t{divide_up(g.m, filters)} *
                             divide_up(c_chunks, Tile::c_chunks) * divide_up(taps, Tile::together) *
                             g.groups;
  const Slices slices = soonest_slices(tiles, dy_place.size / Tile::points);
  const std::int64_t size = std::int64_t{g.groups} * g.m * c_chunks * 8 * taps;
  Tensor partial = empty({slices.count, size}, {Dtype::f32, dw.device()});
  launch(op, shifted_gradient<Tile>, grid_of(op, tiles * slices.count), hopper::warpgroup,
         size_t(ring) * stage_bytes, line, slices, g.groups, m_chunks, c_chunks, g.m, ring,
         stage_bytes, dy_place.size, chunks_of<bf16>(x_line), chunks_of<bf16>(dy_line),
         partial.data<float>());
  launch_add_filter_slices<bf16>(whole, slices.count, c_chunks, partial, x, dy, dw);
  return true;
}

}  // namespace

bool hopper::weight_gradient(const Conv2dSize& size, const Tensor& x, const Tensor& dy,
                             Tensor& dw) {
  const Gather g = gather_of(size, false);
  const int taps = g.h.kernel * g.w.kernel;
  if (!usable<shifted_gradient<GradientTile<64, 3>>>(g, dw.dtype()) || g.m <= 16 || g.c <= 16 ||
      taps < 2 || !worth_packing(dy.numel() * g.c * taps))
    return false;
  const Weights whole = weights_of(size);
  if (dw.dtype() == Dtype::f32)
    return (tf32_allowed() || mostly_filled(g, 64, g.c <= 32 ? 32 : 64, dy.numel() / size.k)) &&
           weight_gradient_tf32(whole, g, x, dy, dw);
  if (g.c > 64) return run_gradient<GradientTile<128, 3>>(whole, g, x, dy, dw);
  return taps <= 3 ? run_gradient<GradientTile<64, 3>>(whole, g, x, dy, dw)
                   : run_gradient<GradientTile<64, 5>>(whole, g, x, dy, dw);
}

}  // namespace ebb::gpu
