// [samples, channels, plane] on the GPU, read once: blocks that are all there at a time share a
// channel, keep it in shared memory, add their sums up and map it from there. For batch norm.
//
// Blocks of a group go from channel to channel together: each sums its share up, sends what it has
// found to the others and waits for theirs. What it maps then makes room for loads of the next
// channel. One half of the groups starts later, so that it loads while the other one waits.
//
//   struct Body {
//     __device__ Column column(int64 c) const …         what it needs to know of a channel
//     __device__ Known known(int64 c) const …           what memory has of a channel
//     __device__ Channel channel(const Known&, const double (&sum)[count]) const …      the map
//     __device__ void keep(int64 c, const Known&, const double (&sum)[count]) const …
//   };                                                  what one thread writes of a channel
//
//   struct Column {                                     rows as in columns.cuh, of all x
//     __device__ void open(const auto& rows, Window&) const …     sums in C, new: these come first
//     __device__ void add(const auto& rows, Window&) const …
//     __device__ void close(const Window&, double (&sum)[count]) const …
//     __device__ void add(const auto& rows, double (&sum)[count]) const …      all three
//   };
//   if (hold_channels<T, count>(op, body, samples, channels, plane, device, y, x…)) return;
//
// Where planes are single elements, a group goes over strips of channels, 128 bytes wide. It
// returns false and does nothing where it cannot, or would not be faster: the caller then goes by
// channel_sums() and channel_map(). How a sum is ordered depends on the shape and on how many
// multiprocessors there are, with how much shared memory.
#pragma once
#include "ebb/ops/held_sums.cuh"

namespace ebb::gpu {

// What a thread finds of a tile. A column has few rows of it, which are one window.
template <int count, bool columns, int lanes, class Column, class Units>
__device__ void sum_units(Units& units, std::int64_t tile, const Column (&own)[lanes],
                          double (&sum)[lanes][count]) {
  using Window = typename Column::Window;
  if constexpr (columns) {
    Window w[lanes]{};
    units.sum(tile, [&](const auto& rows, bool first) {
      if (first)
#pragma unroll
        for (int j = 0; j < lanes; ++j) own[j].open(rows.of_column(j), w[j]);
#pragma unroll
      for (int j = 0; j < lanes; ++j) own[j].add(rows.of_column(j), w[j]);
    });
#pragma unroll
    for (int j = 0; j < lanes; ++j) own[j].close(w[j], sum[j]);
  } else {
    units.sum(tile, [&](const auto& rows, bool) { own[0].add(rows, sum[0]); });
  }
}

template <class T, int count, bool ragged, bool columns, class Body, class... X>
__global__ void __launch_bounds__(held_threads<columns>, held_blocks<columns>)
    held_kernel(const Body body, const HeldLayout s, unsigned long long* partial, T* y,
                const X*... x) {
#if __CUDA_ARCH__ >= 800
  constexpr int lanes = columns ? pack_size<T> : 1;
  using Column = decltype(body.column(0));
  using Channel = decltype(body.channel(body.known(0), {}));
  using Sums = HeldSums<count, lanes, Channel>;
  extern __shared__ uint4 memory[];
  __shared__ Sums sums;
  const T* const from[] = {x...};
  const std::int64_t groups = gridDim.x / s.group;
  HeldUnits<T, sizeof...(X), ragged, columns> units(s, memory, from);
  HeldExchange<Sums> exchange(s, sums, partial);
  Column own[lanes];
  const auto columns_of = [&](std::int64_t tile) {
#pragma unroll
    for (int j = 0; j < lanes; ++j) own[j] = body.column(units.column(tile, j));
  };
  const int me = static_cast<int>(threadIdx.x);
  const auto mine = [&](std::int64_t tile) { return columns ? tile * s.plane + me : tile; };
  const auto has = [&](std::int64_t tile) {
    return me < Sums::columns && tile < s.tiles && (!columns || mine(tile) < s.row);
  };
  std::int64_t tile = blockIdx.x / s.group;
  columns_of(tile);
  auto known = body.known(has(tile) ? mine(tile) : 0);
  const std::int64_t sooner = groups - groups / 2;
  if (s.group > 1 && s.tiles > groups && tile >= sooner) exchange.wait_for(tile - sooner);
  units.start();
  for (; tile < s.tiles; tile += groups) {
    double sum[lanes][count] = {};
    sum_units<count, columns>(units, tile, own, sum);
    sums.add_lanes(sum);
    double total[count] = {};
    exchange.total(tile, total);
    if (has(tile)) sums.keep(me, body.channel(known, total));
    __syncthreads();
    if (has(tile) && exchange.rank() == 0) body.keep(mine(tile), known, total);
    const std::int64_t next = tile + groups;
    if (next < s.tiles) columns_of(next);
    known = body.known(has(next) ? mine(next) : 0);
    Channel channels[lanes];
#pragma unroll
    for (int j = 0; j < lanes; ++j) channels[j] = sums.channel(j);
    units.map(tile, y, [&](int j, auto... v) { return channels[columns ? j : 0](v...); });
  }
#endif
}

// Groups of blocks that hold a tile, or two thirds of it, so that they have the least to do in all:
// for each unit 2, or 3 where it is loaded again, and for each tile 4 of each warp while sums
// travel, or 1 where they stay.
inline HeldLayout held_layout(HeldLayout s, int blocks, int slots, int warps) {
  std::int64_t least = 0;
  HeldLayout best{};
  for (s.group = 1; s.group <= blocks; ++s.group) {
    const std::int64_t rounds = divide_up<std::int64_t>(s.tiles, blocks / s.group);
    s.share = divide_up(s.units, s.group);
    s.steps = divide_up(s.share, warps);
    s.again = std::max(s.steps - slots, 0);
    if (2 * s.again > slots) continue;
    const int travel = s.group > 1 ? 4 : 1;
    const std::int64_t time =
        rounds * (2 * std::max(s.share, warps - 1) + (s.again + travel) * warps);
    if (best.share > 0 && time >= least) continue;
    least = time;
    best = s;
    best.slots = static_cast<int>(std::min<std::int64_t>(slots, rounds * s.steps));
  }
  return best;
}

// y = channel(x…) of tiles, unless they are too large.
template <class T, int count, bool ragged, bool columns, class Body, class... X>
bool hold_tiles(std::string_view op, const Body& body, HeldLayout s, Device device, T* y,
                const X*... x) {
  using Units = HeldUnits<T, sizeof...(X), ragged, columns>;
  using Channel = decltype(body.channel(body.known(0), {}));
  using Sums = HeldSums<count, columns ? pack_size<T> : 1, Channel>;
  constexpr int reserved = 1024;  // of a block's memory, by the system
  constexpr int alignment = 128;
  const int memory = (block_memory() + reserved) / held_blocks<columns> - reserved -
                     static_cast<int>(sizeof(Sums)) - alignment;
  const int blocks = held_blocks<columns> * multiprocessors();
  const int slots = memory / Units::bytes;
  const std::int64_t pieces =
      columns ? 1 : divide_up<std::int64_t>(s.packs, Units::most * warp_size);
  const std::int64_t units =
      columns ? divide_up<std::int64_t>(s.samples, Units::most * Units::step) : s.samples * pieces;
  if (units > std::int64_t{blocks} * held_warps<columns> * 2 * slots) return false;
  s.pieces = WordDivider<unsigned>(pieces);
  s.length = static_cast<int>(divide_up(s.packs, pieces));
  s.units = static_cast<int>(units);
  s = held_layout(s, blocks, slots, held_warps<columns>);
  if (s.share == 0) return false;
  Tensor partial = empty({s.tiles, s.group, Sums::numbers}, {Dtype::f64, device});
  auto* const bits = reinterpret_cast<unsigned long long*>(partial.data<double>());
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(blocks / s.group, s.tiles)) *
                    static_cast<unsigned>(s.group);
  launch_together(op, held_kernel<T, count, ragged, columns, Body, X...>,
                  {grid, held_threads<columns>, static_cast<size_t>(s.slots) * Units::bytes}, body,
                  s, bits, y, x...);
  return true;
}

template <class T, int count, class Body, class... X>
bool hold_channels(std::string_view op, const Body& body, std::int64_t samples,
                   std::int64_t channels, std::int64_t plane, Device device, T* y, const X*... x) {
  constexpr std::int64_t width = pack_size<T>;
  constexpr std::int64_t strip = strip_lanes * width;
  constexpr std::int64_t shortest = 16 * width;  // plane, that a warp does not find too short
  const std::int64_t n = samples * channels * plane;
  // Older GPUs do not copy to shared memory while they go on.
  if (compute_capability() < 80 || multiprocessors() < 64) return false;
  if (n == 0) return false;
  if constexpr (sizeof(T) <= 4) {  // of f64 too little would be held
    if (plane == 1 && channels % width == 0)
      return hold_tiles<T, count, false, true>(
          op, body,
          {divide_up(channels, strip), strip, channels, samples, strip_lanes, passes<T>(n)}, device,
          y, x...);
    if (plane < shortest) return false;
    const HeldLayout s{channels,    plane, channels * plane, samples, packs_of_plane(plane, width),
                       passes<T>(n)};
    if (plane % width == 0) return hold_tiles<T, count, false, false>(op, body, s, device, y, x...);
    return hold_tiles<T, count, true, false>(op, body, s, device, y, x...);
  }
  return false;
}

}  // namespace ebb::gpu
