// [samples, channels, plane] on the GPU, read once: blocks that are all there at a time share a
// channel, keep it in shared memory, add their sums up and map it from there. For batch norm.
//
// Blocks of a group go from channel to channel together. What they have mapped makes room for the
// next, so that loads are always under way; and some warps of each block do nothing but publish its
// sums and collect those of the others, one channel behind, while the other warps go on.
//
//   struct Body {
//     __device__ Column column(int64 c) const …         Column::add(rows, sum) as of columns.cuh,
//                                                       of all x
//     __device__ Known known(int64 c) const …           what memory has of a channel
//     __device__ Channel channel(const Known&, const double (&sum)[count]) const …      the map
//     __device__ void keep(int64 c, const Known&, const double (&sum)[count]) const …
//   };                                                  what one thread writes of a channel
//   if (hold_channels<T, count>(op, body, samples, channels, plane, device, y, x…)) return;
//
// hold_columns() is the same of [samples, channels], by strips of 128 bytes. Both return false and
// do nothing where they cannot, or would not be faster: the caller then goes by channel_sums() and
// channel_map(). How a sum is ordered depends on the shape and on how many multiprocessors there
// are, with how much shared memory.
#pragma once
#include "ebb/ops/channels.cuh"
#include "ebb/ops/mma.cuh"
#include "ebb/ops/together.cuh"

namespace ebb::gpu {

// Of a block, that hold. A multiprocessor has two blocks for channels; sums of many columns need
// too much memory for that.
template <bool columns>
inline constexpr int held_warps = columns ? 16 : 8;
inline constexpr int exchange_warps = 4;  // that exchange sums
template <bool columns>
inline constexpr int held_threads = (held_warps<columns> + exchange_warps) * warp_size;
template <bool columns>
inline constexpr int held_blocks = columns ? 1 : 2;  // of a multiprocessor
inline constexpr int strip_lanes = 8;                // packs of a strip's row

// A tile is a channel, or a strip of columns. A unit is what a warp loads at once: a piece of a
// plane, or some rows of a strip.
struct HeldLayout {
  std::int64_t tiles;
  std::int64_t plane;     // elements from a tile to the next
  std::int64_t row;       // elements from a sample to the next
  std::int64_t samples;   // planes of a tile
  std::int64_t packs;     // of a plane
  int pieces = 1;         // of a plane
  int length = 1;         // packs of a piece
  int units = 1;          // of a tile
  int group = 1;          // blocks of a tile
  int share = 0;          // units of a block
  int steps = 1;          // units of a warp
  int slots = 1;          // units of a warp that shared memory has room for
  bool clusters = false;  // the groups are clusters
};

// Where a unit is in a tile, for all lanes of a warp.
struct HeldUnit {
  std::int64_t at;  // its first element
  int left;         // packs, or rows of a strip, that it has
};

template <int bytes>
__device__ void copy_async(void* to, const void* from) {
  if constexpr (bytes == 16)
    copy_async(to, from, true);
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from),
                 "n"(bytes)
                 : "memory");
}

// Until all but the newest `left` groups of the thread's copies have arrived, or 8 if that is less.
template <int most = 8>
__device__ void wait_for_most(int left) {
  if constexpr (most > 0)
    if (left < most) return wait_for_most<most - 1>(left);
  wait_for_groups<most>();
}

// A warp's units of each tile. Those in shared memory a thread loads, reads and replaces itself, so
// that it waits for nobody.
template <class T, int inputs, int width, bool columns>
class HeldUnits {
 public:
  static constexpr int most = inputs == 1 ? 4 : 2;                            // packs of a lane
  static constexpr int step = columns ? warp_size / strip_lanes : warp_size;  // of a lane
  static constexpr int unit_bytes = inputs * most * warp_size * width * static_cast<int>(sizeof(T));
  using Window = ChannelWindow<T, inputs, most, width>;

  __device__ HeldUnits(const HeldLayout& s, bool holds, void* memory, const T* const (&x)[inputs])
      : s_(s),
        memory_(static_cast<T*>(memory) + threadIdx.x * width),
        table_(reinterpret_cast<HeldUnit*>(static_cast<char*>(memory) +
                                           s.slots * held_warps<columns> * unit_bytes) +
               threadIdx.x / warp_size * s.steps),
        x_(x) {
    if (!holds) return;
    const int warp = threadIdx.x / warp_size;
    const int lane = threadIdx.x % warp_size;
    const int start = static_cast<int>(blockIdx.x) % s.group * s.share;
    const int left = min(s.units - start, s.share) - warp;
    count_ = left > 0 ? divide_up(left, held_warps<columns>) : 0;
    for (int k = lane; k < count_; k += warp_size)
      table_[k] = unit(start + warp + k * held_warps<columns>);
    __syncwarp();
    lane_at_ = columns ? lane / strip_lanes * s.row + lane % strip_lanes * width : lane * width;
    lane_left_ = columns ? lane / strip_lanes : lane;
    next_tile_ = blockIdx.x / s.group;
    for (int k = 0; k < s.slots; ++k) fetch();
  }

  // Column of element j of the thread's packs; some column where that is beyond the last.
  __device__ std::int64_t column(std::int64_t tile, int j) const {
    if (!columns) return tile;
    const std::int64_t c = tile * s_.plane + threadIdx.x % strip_lanes * width + j;
    return c < s_.row ? c : 0;
  }

  // f(window) for the units of a tile, none empty. `ahead` units have been asked for after its
  // first.
  template <class F>
  __device__ void visit(std::int64_t tile, int slot, int ahead, F f) const {
    Window w;
    for (int k = 0; k < count_; ++k) {
      wait_for_most(ahead - k - 1);
      take(w, at(tile, k), slot);
      if (w.count > 0) f(w);
    }
  }

  // y = f(x…) for the units of a tile, which make room for others.
  template <class F>
  __device__ void map(std::int64_t tile, int slot, T* y, F f) {
    Window w;
    for (int k = 0; k < s_.steps; ++k) {
      if (k < count_) {
        take(w, at(tile, k), slot);
        w.map(y, f);
      }
      fetch();
    }
  }

 private:
  struct Place {
    std::int64_t at;  // of the lane's first pack
    int count;
  };

  __device__ HeldUnit unit(int n) const {
    if constexpr (columns) {
      const int row = n * (most * step);
      return {row * s_.row, min(static_cast<int>(s_.samples) - row, most * step)};
    } else {
      const int sample = n / s_.pieces;
      const int pack = (n - sample * s_.pieces) * s_.length;
      return {sample * s_.row + pack * width, min(static_cast<int>(s_.packs) - pack, s_.length)};
    }
  }
  __device__ Place at(std::int64_t tile, int k) const {
    const HeldUnit unit = table_[k];
    const std::int64_t first = tile * s_.plane + lane_at_;
    const int count = (unit.left - lane_left_ + step - 1) / step;  // 0 or more: step - 1 lanes
    const bool none = columns && tile * s_.plane + threadIdx.x % strip_lanes * width >= s_.row;
    return {first + unit.at, none || count < 0 ? 0 : count};
  }
  // Elements from a pack of a lane to its next.
  __device__ std::int64_t stride() const { return columns ? step * s_.row : step * width; }

  __device__ T* memory(int slot, int u, int q) const {
    return memory_ + ((slot * most + u) * inputs + q) * (held_warps<columns> * warp_size * width);
  }
  __device__ int after(int slot) const { return slot + 1 == s_.slots ? 0 : slot + 1; }

  // Starts to load the next unit, if there is one: a group of copies in any case.
  __device__ void fetch() {
    if (next_tile_ < s_.tiles && next_ < count_) {
      const Place p = at(next_tile_, next_);
#pragma unroll
      for (int u = 0; u < most; ++u)
        if (u < p.count)
#pragma unroll
          for (int q = 0; q < inputs; ++q)
            copy_async<width * sizeof(T)>(memory(next_slot_, u, q), x_[q] + p.at + u * stride());
    }
    commit_copies();
    next_slot_ = after(next_slot_);
    if (++next_ < s_.steps) return;
    next_ = 0;
    next_tile_ += gridDim.x / s_.group;
  }

  // A window from shared memory.
  __device__ void take(Window& w, const Place& p, int& slot) const {
    w.count = p.count;
#pragma unroll
    for (int u = 0; u < most; ++u) {
      w.place[u] = p.at + u * stride();
      const bool there = u < p.count;
#pragma unroll
      for (int q = 0; q < inputs; ++q) w.packs[u][q] = load_if<width>(there, memory(slot, u, q));
    }
    slot = after(slot);
  }

  const HeldLayout& s_;
  T* memory_;        // the thread's
  HeldUnit* table_;  // the warp's
  const T* const (&x_)[inputs];
  std::int64_t lane_at_ = 0;
  std::int64_t next_tile_ = 0;  // to be fetched
  int lane_left_ = 0;
  int count_ = 0;  // units of a tile
  int next_ = 0;
  int next_slot_ = 0;
};

// The sums of a tile on their way through all blocks of a group: over the lanes, warps and blocks
// in order. Numbers travel by themselves, to where there was `absent` before.
template <int count, int lanes, class Channel>
struct HeldSums {
  static constexpr bool strips = lanes > 1;
  static constexpr int first_lanes = strips ? strip_lanes : 1;
  static constexpr int columns = lanes * first_lanes;
  static constexpr int numbers = columns * count;
  static_assert(numbers <= exchange_warps * warp_size);
  using Bits = unsigned long long;
  static constexpr Bits absent = ~Bits{};  // a NaN

  double of_warps[held_warps<strips>][numbers];
  Bits of_blocks[most_cluster_blocks][numbers];
  double totals[numbers];
  alignas(16) unsigned char channels[2][columns][sizeof(Channel)];

  __device__ void add_lanes(const double (&sum)[lanes][count]) {
    const int lane = threadIdx.x % warp_size;
    double* const to = of_warps[threadIdx.x / warp_size];
#pragma unroll
    for (int j = 0; j < lanes; ++j)
#pragma unroll
      for (int q = 0; q < count; ++q) {
        double total = sum[j][q];
#pragma unroll
        for (int offset = warp_size / 2; offset >= first_lanes; offset /= 2)
          total += __shfl_xor_sync(0xffffffffu, total, offset);
        if (lane < first_lanes) to[(lane * lanes + j) * count + q] = total;
      }
  }

  // What follows is called by the threads of the exchange, of which `me` is one. put(number, sum of
  // this block).
  template <class Put>
  __device__ void publish(int me, bool more, Put put) const {
    double total = 0;
    if (me < numbers)
#pragma unroll
      for (int w = 0; w < held_warps<strips>; ++w) total += of_warps[w][me];
    if (more) asm volatile("barrier.arrive 2, %0;" ::"n"(held_threads<strips>) : "memory");
    const auto bits = __builtin_bit_cast(Bits, total);
    if (me < numbers) put(me, bits == absent ? absent >> 1 : bits);
  }
  // By the others, before they add lanes again.
  __device__ static void wait_for_publishing() {
    asm volatile("barrier.sync 2, %0;" ::"n"(held_threads<strips>) : "memory");
  }

  // The sums of all blocks of a group, [group][numbers], as they come.
  __device__ void collect(int me, const volatile Bits* from, int group) {
    if constexpr (strips) {
      if (me < numbers) totals[me] = sum(from + me, 0, group, 1);
    } else if (me < count * warp_size) {
      const int lane = me % warp_size;
      const double total = sum(from + me / warp_size, lane, group, warp_size);
      totals[me / warp_size] = warp_reduce(total, Sum{});
    }
    asm volatile("barrier.sync 1, %0;" ::"n"(exchange_warps * warp_size) : "memory");
  }

  __device__ void keep(int column, bool odd, const Channel& channel) {
    *reinterpret_cast<Channel*>(channels[odd][column]) = channel;
  }
  __device__ const Channel& channel(bool odd, int j) const {
    const int c = strips ? threadIdx.x % strip_lanes * lanes + j : 0;
    return *reinterpret_cast<const Channel*>(channels[odd][c]);
  }

 private:
  __device__ static double sum(const volatile Bits* from, int first, int group, int step) {
    constexpr int most = 8;  // asked for at a time
    double total = 0;
    for (int r = first; r < group; r += most * step) {
      Bits bits[most];
      bool all = false;
      while (!all) {
        all = true;
#pragma unroll
        for (int u = 0; u < most; ++u)
          bits[u] = r + u * step < group ? from[(r + u * step) * numbers] : 0;
#pragma unroll
        for (int u = 0; u < most; ++u) all = all && bits[u] != absent;
      }
#pragma unroll
      for (int u = 0; u < most; ++u) total += __builtin_bit_cast(double, bits[u]);
    }
    return total;
  }
};

// Where the blocks of a group leave numbers for each other: in a cluster that has one tile in each
// other's shared memory, else in `partial`, [tiles][group][numbers].
template <class Sums>
class HeldExchange {
 public:
  using Bits = typename Sums::Bits;

  // For all threads of all blocks: nobody has numbers before everybody expects them.
  __device__ HeldExchange(const HeldLayout& s, Bits* partial, Bits* of_blocks)
      : group_(s.group), clusters_(s.clusters), partial_(partial), of_blocks_(of_blocks) {
    if (clusters_) {
      for (int i = threadIdx.x; i < group_ * Sums::numbers; i += static_cast<int>(blockDim.x))
        of_blocks_[i] = Sums::absent;
#if __CUDA_ARCH__ >= 900
      cooperative_groups::this_cluster().sync();
#endif
      return;
    }
    const std::int64_t groups = gridDim.x / group_;
    for (std::int64_t tile = blockIdx.x / group_; tile < s.tiles; tile += groups)
      for (int i = threadIdx.x; i < Sums::numbers; i += static_cast<int>(blockDim.x))
        partial_[place(tile, rank()) + i] = Sums::absent;
    cooperative_groups::this_grid().sync();
  }
  __device__ const Bits* of(std::int64_t tile) const {
    return clusters_ ? of_blocks_ : partial_ + place(tile, 0);
  }
  __device__ void put(std::int64_t tile, int number, Bits bits) const {
    if (!clusters_) {
      *static_cast<volatile Bits*>(partial_ + place(tile, rank()) + number) = bits;
      return;
    }
#if __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
    for (int r = 0; r < group_; ++r)
      *static_cast<volatile Bits*>(cluster.map_shared_rank(
          of_blocks_ + rank() * Sums::numbers + number, static_cast<unsigned>(r))) = bits;
#endif
  }

 private:
  __device__ int rank() const { return static_cast<int>(blockIdx.x) % group_; }
  __device__ std::int64_t place(std::int64_t tile, int rank) const {
    return (tile * group_ + rank) * Sums::numbers;
  }
  int group_;
  bool clusters_;
  Bits* partial_;
  Bits* of_blocks_;
};

template <class T, int count, int width, bool columns, class Body, class... X>
__global__ void __launch_bounds__(held_threads<columns>, held_blocks<columns>)
    held_kernel(const Body body, const HeldLayout s, unsigned long long* partial, T* y,
                const X*... x) {
#if __CUDA_ARCH__ >= 800
  constexpr int inputs = sizeof...(X);
  constexpr int lanes = columns ? width : 1;
  using Channel = decltype(body.channel(body.known(0), {}));
  using Sums = HeldSums<count, lanes, Channel>;
  extern __shared__ uint4 memory[];
  __shared__ Sums sums;
  const T* const from[] = {x...};
  const int me =
      static_cast<int>(threadIdx.x) - held_warps<columns> * warp_size;  // of the exchange
  const bool holds = me < 0;
  const std::int64_t groups = gridDim.x / s.group;
  const std::int64_t first = blockIdx.x / s.group;
  const int rank = blockIdx.x % s.group;
  HeldUnits<T, inputs, width, columns> units(s, holds, memory, from);
  const HeldExchange<Sums> exchange(s, partial, sums.of_blocks[0]);
  int slot = 0;
  int slot_before = 0;
  bool odd = false;
  decltype(body.column(0)) own[lanes];
  const auto columns_of = [&](std::int64_t tile) {  // read ahead
#pragma unroll
    for (int j = 0; j < lanes; ++j) own[j] = body.column(units.column(tile, j));
  };
  if (holds) columns_of(first);
  for (std::int64_t tile = first; tile < s.tiles + groups; tile += groups) {
    const std::int64_t before = tile - groups;
    const bool next = tile < s.tiles;
    const bool last = before >= 0;
    const std::int64_t mine = columns ? before * s.plane + me : before;
    const bool has = last && 0 <= me && me < Sums::columns && (!columns || mine < s.row);
    const auto known = body.known(has ? mine : 0);
    double total[count] = {};
    if (holds && next) {
      double sum[lanes][count] = {};
      units.visit(tile, slot, last ? s.slots - s.steps : s.slots, [&](const auto& window) {
        if constexpr (columns)
#pragma unroll
          for (int j = 0; j < lanes; ++j) own[j].add(window.of_column(j), sum[j]);
        else
          own[0].add(window, sum[0]);
      });
      if (last) Sums::wait_for_publishing();
      sums.add_lanes(sum);
      if (tile + groups < s.tiles) columns_of(tile + groups);
    } else if (!holds && last) {
      sums.collect(me, exchange.of(before), s.group);
      if (has) {
#pragma unroll
        for (int q = 0; q < count; ++q) total[q] = sums.totals[me * count + q];
        sums.keep(me, !odd, body.channel(known, total));
      }
    }
    __syncthreads();
    if (holds && last) {
      Channel channels[lanes];
#pragma unroll
      for (int j = 0; j < lanes; ++j) channels[j] = sums.channel(!odd, j);
      units.map(before, slot_before, y,
                [&](int j, auto... v) { return channels[columns ? j : 0](v...); });
    }
    if (!holds && next)
      sums.publish(me, tile + groups < s.tiles,
                   [&](int number, auto sum) { exchange.put(tile, number, sum); });
    if (has && rank == 0) body.keep(mine, known, total);
    odd = !odd;
    slot_before = slot;
    slot += s.steps;
    if (slot >= s.slots) slot -= s.slots;
  }
#endif
}

// Groups of blocks that hold a tile and the next one, so that they have the least to do in all: a
// round, with an exchange of sums, takes as long as some steps.
inline HeldLayout held_layout(HeldLayout s, int blocks, int slots, int warps) {
  constexpr std::int64_t exchange = 2;  // steps
  std::int64_t least = 0;
  HeldLayout best{};
  for (s.group = 1; s.group <= blocks; ++s.group) {
    const std::int64_t rounds = divide_up<std::int64_t>(s.tiles, blocks / s.group);
    s.share = divide_up(s.units, s.group);
    s.steps = divide_up(s.share, warps);
    if ((rounds > 1 ? 2 : 1) * s.steps > slots) continue;
    const std::int64_t time = rounds * (s.steps + exchange);
    if (best.share > 0 && time >= least) continue;
    least = time;
    best = s;
    best.slots = static_cast<int>(std::min<std::int64_t>(slots, rounds * s.steps));
    best.clusters = rounds == 1 && s.group <= most_cluster_blocks && have_clusters() &&
                    s.tiles * s.group <= blocks / 8 * 7;  // all at a time
  }
  return best;
}

// y = channel(x…) of tiles, unless they are too large.
template <class T, int count, int width, bool columns, class Body, class... X>
bool hold_tiles(std::string_view op, const Body& body, HeldLayout s, Device device, T* y,
                const X*... x) {
  constexpr int lanes = columns ? width : 1;
  using Units = HeldUnits<T, sizeof...(X), width, columns>;
  using Channel = decltype(body.channel(body.known(0), {}));
  using Sums = HeldSums<count, lanes, Channel>;
  constexpr int slot_bytes =
      held_warps<columns> * (Units::unit_bytes + static_cast<int>(sizeof(HeldUnit)));
  constexpr int reserved = 1024;  // of a block's memory, by the system
  constexpr int alignment = 128;
  const int memory = (block_memory() + reserved) / held_blocks<columns> - reserved -
                     static_cast<int>(sizeof(Sums)) - alignment;
  const int blocks = held_blocks<columns> * multiprocessors();
  const int slots = memory / slot_bytes;
  const std::int64_t pieces =
      columns ? 1 : divide_up<std::int64_t>(s.packs, Units::most * warp_size);
  const std::int64_t units =
      columns ? divide_up<std::int64_t>(s.samples, Units::most * Units::step) : s.samples * pieces;
  if (units > std::int64_t{blocks} * held_warps<columns> * slots) return false;
  s.pieces = static_cast<int>(pieces);
  s.length = static_cast<int>(divide_up(s.packs, pieces));
  s.units = static_cast<int>(units);
  s = held_layout(s, blocks, slots, held_warps<columns>);
  if (s.share == 0) return false;
  Tensor partial;
  if (!s.clusters) partial = empty({s.tiles, s.group, Sums::numbers}, {Dtype::f64, device});
  auto* const bits =
      s.clusters ? nullptr : reinterpret_cast<unsigned long long*>(partial.data<double>());
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(blocks / s.group, s.tiles)) *
                    static_cast<unsigned>(s.group);
  launch_together(op, held_kernel<T, count, width, columns, Body, X...>,
                  {grid, held_threads<columns>, static_cast<size_t>(s.slots) * slot_bytes,
                   s.clusters ? static_cast<unsigned>(s.group) : 0},
                  body, s, bits, y, x...);
  return true;
}

// Older GPUs do not copy to shared memory while they go on, and of f64 too little would be held.
template <class T>
bool can_hold() {
  return sizeof(T) <= 4 && compute_capability() >= 80 && multiprocessors() >= 64;
}

template <class T, int count, class Body, class... X>
bool hold_channels(std::string_view op, const Body& body, std::int64_t samples,
                   std::int64_t channels, std::int64_t plane, Device device, T* y, const X*... x) {
  constexpr std::int64_t shortest = 16;  // packs, that a warp does not find too few
  if (!can_hold<T>() || samples * channels == 0) return false;
  bool done = false;
  with_width<T>(
      plane,
      [&]<int width>() {
        if constexpr (width * sizeof(T) >= 4 && sizeof(T) <= 4)
          if (plane / width >= shortest)
            done = hold_tiles<T, count, width, false>(
                op, body, {channels, plane, channels * plane, samples, plane / width}, device, y,
                x...);
      },
      static_cast<const T*>(y), x...);
  return done;
}

template <class T, int count, class Body, class... X>
bool hold_columns(std::string_view op, const Body& body, std::int64_t samples,
                  std::int64_t channels, Device device, T* y, const X*... x) {
  if (!can_hold<T>() || samples * channels == 0) return false;
  constexpr std::int64_t strip = strip_lanes * pack_size<T>;
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  // Two tensors of bf16 are as fast by columns(): eight columns a thread are more work than bytes.
  if constexpr (sizeof(T) == 4 || (sizeof(T) == 2 && sizeof...(X) == 1))
    if (channels % pack_size<T> == 0 && aligned(y) && (aligned(x) && ...))
      return hold_tiles<T, count, pack_size<T>, true>(
          op, body, {divide_up(channels, strip), strip, channels, samples, strip_lanes}, device, y,
          x...);
  return false;
}

}  // namespace ebb::gpu
