// The sums of a tile on their way through all blocks of a group: over the lanes, the warps and the
// blocks, in order.
//
// Between blocks they go through memory, [tiles][group][numbers], where each number is there once
// it is not `absent` any more.
#pragma once
#include "ebb/ops/held_units.cuh"
#include "ebb/ops/together.cuh"

namespace ebb::gpu {

// In shared memory.
template <int count, int lanes, class Channel>
struct HeldSums {
  static constexpr bool strips = lanes > 1;
  static constexpr int first_lanes = strips ? strip_lanes : 1;
  static constexpr int columns = lanes * first_lanes;
  static constexpr int numbers = count * columns;
  static constexpr int threads = held_threads<strips>;
  static constexpr int receivers = numbers < warp_size ? held_warps<strips> : threads / numbers;
  static_assert(threads % numbers == 0);
  using Numbers = double[numbers];

  Numbers of_warps[held_warps<strips>];
  Numbers of_blocks[receivers];
  alignas(16) unsigned char channels[columns][sizeof(Channel)];

  __device__ void add_lanes(const double (&sum)[lanes][count]) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int j = 0; j < lanes; ++j) {
        double all = sum[j][q];
#pragma unroll
        for (int offset = warp_size / 2; offset >= first_lanes; offset /= 2)
          all += __shfl_xor_sync(0xffffffffu, all, offset);
        if (lane < first_lanes)
          of_warps[threadIdx.x / warp_size][q * columns + lane * lanes + j] = all;
      }
  }

  // Of this block.
  __device__ double number(int n) const {
    double total = 0;
#pragma unroll
    for (int w = 0; w < held_warps<strips>; ++w) total += of_warps[w][n];
    return total;
  }

  // All of what threads have of number threadIdx.x % numbers, for those of the first columns.
  __device__ void total(double sum, double (&total)[count]) {
    const int me = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int offset = warp_size / 2; offset >= numbers; offset /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    constexpr int together = numbers < warp_size ? warp_size : numbers;
    if (me % together < numbers) of_blocks[me / together][me % together] = sum;
    __syncthreads();
    if (me >= columns) return;
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int p = 0; p < receivers; ++p) total[q] += of_blocks[p][q * columns + me];
  }

  __device__ void keep(int column, const Channel& channel) {
    *reinterpret_cast<Channel*>(channels[column]) = channel;
  }
  // Of column j of the thread.
  __device__ const Channel& channel(int j) const {
    const int c = strips ? static_cast<int>(threadIdx.x) % strip_lanes * lanes + j : 0;
    return *reinterpret_cast<const Channel*>(channels[c]);
  }
};

template <class Sums>
class HeldExchange {
 public:
  using Bits = unsigned long long;

  // For all threads of all blocks.
  __device__ HeldExchange(const HeldLayout& s, Sums& sums, Bits* partial)
      : group_(s.group), sums_(sums), partial_(partial) {
    if (group_ == 1) return;
    const std::int64_t groups = gridDim.x / group_;
    for (std::int64_t tile = blockIdx.x / group_; tile < s.tiles; tile += groups)
      for (int i = static_cast<int>(threadIdx.x); i < Sums::numbers;
           i += static_cast<int>(blockDim.x))
        partial_[place(tile, rank()) + i] = absent;
    all_expect_ = cooperative_groups::this_grid().barrier_arrive();
  }
  // Of the group.
  __device__ int rank() const { return static_cast<int>(blockIdx.x) % group_; }

  // Until this tile has come from the first block of its group, for all threads.
  __device__ void wait_for(std::int64_t tile) {
    meet();
    if (threadIdx.x == 0)
      while (partial_[place(tile, 0)] == absent) {}
    __syncthreads();
  }

  // The sums of a tile, by all threads: the first ones get those of their column.
  template <int count>
  __device__ void total(std::int64_t tile, double (&total)[count]) {
    meet();
    const int me = static_cast<int>(threadIdx.x);
    double sum = me < Sums::numbers ? sums_.number(me) : 0;
    if (group_ > 1) {
      send(tile, sum);
      sum = receive(tile);
    }
    sums_.total(sum, total);
  }

 private:
  static constexpr Bits absent = ~Bits{};  // a NaN
  __device__ std::int64_t place(std::int64_t tile, int rank) const {
    return (tile * group_ + rank) * Sums::numbers;
  }

  // Of a block; and of all blocks the first time, as nobody may send before everybody expects it.
  __device__ void meet() {
    if (met_ || group_ == 1) return __syncthreads();
    cooperative_groups::this_grid().barrier_wait(std::move(all_expect_));
    met_ = true;
  }

  // What this block has found of the thread's number.
  __device__ void send(std::int64_t tile, double number) const {
    const int me = static_cast<int>(threadIdx.x);
    if (me >= Sums::numbers) return;
    auto bits = __builtin_bit_cast(Bits, number);
    if (bits == absent) bits >>= 1;
    partial_[place(tile, rank()) + me] = bits;
  }

  // What some blocks of the group have found, of one number.
  __device__ double receive(std::int64_t tile) const {
    constexpr int most = 8;  // blocks that a thread asks at a time
    constexpr int step = Sums::threads / Sums::numbers;
    const int me = static_cast<int>(threadIdx.x);
    const volatile Bits* const from = partial_ + place(tile, 0) + me % Sums::numbers;
    double sum = 0;
    for (int r = me / Sums::numbers; r < group_; r += most * step) {
      Bits bits[most];
      bool all = false;
      while (!all) {
        all = true;
#pragma unroll
        for (int u = 0; u < most; ++u)
          bits[u] = r + u * step < group_ ? from[(r + u * step) * Sums::numbers] : 0;
#pragma unroll
        for (int u = 0; u < most; ++u) all = all && bits[u] != absent;
      }
#pragma unroll
      for (int u = 0; u < most; ++u) sum += __builtin_bit_cast(double, bits[u]);
    }
    return sum;
  }

  int group_;
  Sums& sums_;
  volatile Bits* partial_;
  cooperative_groups::grid_group::arrival_token all_expect_;
  bool met_ = false;
};

}  // namespace ebb::gpu
