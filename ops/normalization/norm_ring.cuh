// Internal: not in <ebb/ebb.h>, not installed.
// Rows of the backward pass on Hopper: a group of threads has a few rows at a time in its
// registers, and the next ones on their way into a ring in shared memory, which one thread keeps
// filling by bulk copies. Threads own columns: dw and db stay in registers over all rows; then the
// groups of a block add up theirs, and a second stage what the blocks have found. Of longer rows
// the blocks of a cluster have a slice each. Rows may begin anywhere (lanes.cuh).
#pragma once
#include "ebb/ops/exchange.cuh"
#include "ebb/ops/normalization/norm_backward.cuh"

namespace ebb::gpu {

inline constexpr int ring_window = 64;  // rows added up before they join the earlier ones

// A group's threads, their packs of a row, the rows of a step, the steps in the ring. A block,
// alone on its multiprocessor, is as many groups as make 512 threads.
template <int threads_, int packs_, int rows_, int stages_, bool packed_ = true,
          bool sliced_ = false>
struct Ring {
  static constexpr int threads = threads_;
  static constexpr int packs = packs_;
  static constexpr int rows = rows_;
  static constexpr int stages = stages_;
  static constexpr bool packed = packed_;
  static constexpr bool sliced = sliced_;
  static constexpr int groups = 512 / threads;
  static constexpr int place = threads * packs;  // of 16 bytes, for a row
  static constexpr int bytes = groups * stages * rows * 2 * place * 16;
};

struct RingRows {
  std::int64_t rows;
  std::int64_t cols;
  int period;  // lanes.cuh; 1 where rows are packed
  int blocks;  // of a row
  int slice;   // columns of each but the last, whole packs
};

// The threads of a group wait for each other.
template <int threads>
__device__ void meet_in_group(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

// What of a row is copied: `count` elements from `first` on, in bulk, from one multiple of 16 bytes
// to another; and `rest` more where the tensor ends between two.
template <int width>
struct Extent {
  std::int64_t first;
  int count;
  int rest;
  __device__ Extent(std::int64_t begin, int before, int cols, std::int64_t end)
      : first(begin - before), count(divide_up(before + cols, width) * width), rest(0) {
    if (count <= end - first) return;
    count -= width;
    rest = before + cols - count;
  }
};

// `of` of each block, added up over the blocks of a row.
template <int rows>
__device__ void add_blocks(Exchange<rows>& exchange, int n, int blocks, int rank, int lane,
                           float (&of)[2 * rows]) {
  std::uint64_t mine[rows];
#pragma unroll
  for (int i = 0; i < rows; ++i)
    mine[i] = __builtin_bit_cast(std::uint64_t, make_float2(of[2 * i], of[2 * i + 1]));
  const auto* const all = exchange.of_all(n, blocks, rank, lane, mine);
#pragma unroll
  for (int i = 0; i < 2 * rows; ++i) of[i] = 0;
  for (int b = 0; b < blocks; ++b)
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const float2 of_block = __builtin_bit_cast(float2, all[b][i]);
      of[2 * i] += of_block.x;
      of[2 * i + 1] += of_block.y;
    }
}

template <class T, class R, bool centred>
__global__ void __launch_bounds__(R::threads* R::groups, 1)
    ring_backward_kernel(const T* x, const T* dy, const T* weight, const double* mean,
                         const float* rstd, RingRows s, T* dx, float* windows, float* partial) {
#if __CUDA_ARCH__ >= 900
  using L = Lanes<T, R::threads, R::packs, R::packed>;
  using P = typename L::P;
  constexpr int width = L::width;
  constexpr int packs = R::packs;
  constexpr int most = R::rows;
  constexpr int count = centred ? 2 : 1;
  constexpr int warps = R::threads / warp_size;
  constexpr int window = ring_window / most;  // steps
  constexpr int columns = R::place * width;   // that a group can have
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ hopper::Barrier barriers[R::groups][R::stages];
  __shared__ __align__(16) float sums_of[R::groups][2][warps][2 * most];
  __shared__ Exchange<most> sums_of_blocks[R::sliced ? R::groups : 1];
  const int blocks = R::sliced ? s.blocks : 1;
  const std::int64_t cluster = static_cast<int>(blockIdx.x) / blocks;
  const std::int64_t clusters = static_cast<int>(gridDim.x) / blocks;
  const int rank = static_cast<int>(blockIdx.x) % blocks;
  const std::int64_t first_column = R::sliced ? std::int64_t{rank} * s.slice : 0;
  const std::int64_t left = s.cols - first_column;
  const int cols = static_cast<int>(R::sliced && left > s.slice ? s.slice : left);
  x += first_column;
  dy += first_column;
  dx += first_column;
  if (weight) weight += first_column;
  const int group = static_cast<int>(threadIdx.x) / R::threads;
  const int lane = static_cast<int>(threadIdx.x) % R::threads;
  uint4* const ring = reinterpret_cast<uint4*>(memory + group * (R::bytes / R::groups));
  hopper::Barrier(&full)[R::stages] = barriers[group];
  float(&found)[2][warps][2 * most] = sums_of[group];
  const auto place = [=](int stage, int row, int input) {
    return ring + ((stage * most + row) * 2 + input) * R::place;
  };
  if (lane == 0)
    for (hopper::Barrier& barrier : full) barrier.init(1);
  if (R::sliced && lane == 0) sums_of_blocks[group].init();
  hopper::show_barriers();
  gpu::meet(blocks);
  const std::int64_t groups = clusters * R::groups;
  const std::int64_t step = groups * most;
  const auto before = [=](int group) {
    return R::packed ? 0
                     : static_cast<int>((cluster * R::groups + group) % s.period * s.cols % width);
  };
  std::int64_t row = first_row(cluster * R::groups + group, s.period, most);
  const std::int64_t behind = row - first_row(cluster * R::groups, s.period, most);
  const L lanes{cols, lane, before(group)};
  const auto extent = [=](std::int64_t row) {
    return Extent<width>(row * s.cols, lanes.before(), cols, s.rows * s.cols - first_column);
  };
  const auto fetch = [&](int stage, std::int64_t from) {
    if (lane != 0 || from >= s.rows) return;
    int bytes = 0;
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (from + i * s.period >= s.rows) break;
      const Extent<width> e = extent(from + i * s.period);
      bytes += e.count * static_cast<int>(sizeof(T));
      for (int j = e.count; j < e.count + e.rest; ++j) {
        reinterpret_cast<T*>(place(stage, i, 0))[j] = x[e.first + j];
        reinterpret_cast<T*>(place(stage, i, 1))[j] = dy[e.first + j];
      }
    }
    full[stage].arrive_expecting(2 * bytes);
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (from + i * s.period >= s.rows) break;
      const Extent<width> e = extent(from + i * s.period);
      const int n = e.count * static_cast<int>(sizeof(T));
      if (n == 0) continue;
      hopper::copy(place(stage, i, 0), x + e.first, n, full[stage]);
      hopper::copy(place(stage, i, 1), dy + e.first, n, full[stage]);
    }
  };
  for (int k = 0; k + 1 < R::stages; ++k) fetch(k, row + k * step);
  P w[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) w[k] = lanes.load(weight, k);
  double next_mean[most];
  float next_r[most];
  const auto read_constants = [&](std::int64_t from) {
#pragma unroll
    for (int i = 0; i < most; ++i) {
      const std::int64_t row = from + i * s.period;
      next_mean[i] = centred && row < s.rows ? mean[row] : 0.0;
      next_r[i] = row < s.rows ? rstd[row] : 0.0f;
    }
  };
  read_constants(row);
  const float part = 1 / static_cast<float>(s.cols);
  OwnSums<count, packs, width, R::threads> sums;
  const int end = lanes.before() + cols;
  float* const window_sums =
      windows + ((cluster * R::groups + group) * blocks + rank) * std::int64_t{columns};
  const std::int64_t window_stride = groups * blocks * columns;
  bool first = true;
  int waiting = 0;
  int steps = 0;
  int stage = 0;
  int phase = 0;
  for (int turn = 0; row - behind < s.rows; row += step, turn ^= 1) {
    if (row >= s.rows) {  // all groups meet as often: racecheck only counts
      meet_in_group<R::threads>(1 + group);
      break;
    }
    Hat<float> hat[most];
    float r[most];
#pragma unroll
    for (int i = 0; i < most; ++i) {
      hat[i] = Hat<float>(next_mean[i], next_r[i]);
      r[i] = next_r[i];
    }
    read_constants(row + step);
    full[stage].wait(phase);
    float of[2 * most] = {};  // Σ g and Σ g x̂ of each row
    P in[most][packs];
    P up[most][packs];
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int i = 0; i < most; ++i) {
        in[i][k] = __builtin_bit_cast(P, place(stage, i, 0)[k * R::threads + lane]);
        up[i][k] = __builtin_bit_cast(P, place(stage, i, 1)[k * R::threads + lane]);
        float d[width];
        float h[width];
        const bool inside = row + i * s.period < s.rows;  // or there is an older row in its place
        upstream_and_hat(lanes, k, inside, hat[i], in[i][k], up[i][k], d, h);
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const float g = rounded_product(d[j], widen(w[k], j));
          if constexpr (centred) of[2 * i] += g;
          of[2 * i + 1] += g * h[j];
          sums.v[0][k][j] += d[j] * h[j];
          if constexpr (centred) sums.v[1][k][j] += d[j];
        }
      }
#pragma unroll
    for (int i = centred ? 0 : 1; i < 2 * most; i += centred ? 1 : 2)
      of[i] = warp_reduce(of[i], Sum{});
    if (lane % warp_size == 0)
#pragma unroll
      for (int i = 0; i < 2 * most; ++i) found[turn][lane / warp_size][i] = of[i];
    meet_in_group<R::threads>(1 + group);  // all are done with the step before: its place is free
    fetch(stage == 0 ? R::stages - 1 : stage - 1, row + (R::stages - 1) * step);
#pragma unroll
    for (int i = 0; i < 2 * most; ++i) {
      of[i] = found[turn][0][i];
#pragma unroll
      for (int v = 1; v < warps; ++v) of[i] += found[turn][v][i];
    }
    if constexpr (R::sliced) add_blocks(sums_of_blocks[group], steps++, blocks, rank, lane, of);
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (row + i * s.period >= s.rows) break;
      const RowGradient<float> gradient(hat[i], r[i], of[2 * i] * part, of[2 * i + 1] * part);
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        float out[width];
#pragma unroll
        for (int j = 0; j < width; ++j)
          out[j] =
              gradient(rounded_product(widen(up[i][k], j), widen(w[k], j)), widen(in[i][k], j));
        lanes.store(dx + (row + i * s.period) * s.cols, k, narrow<T>(out));
      }
    }
    if (++stage == R::stages) {
      stage = 0;
      phase ^= 1;
    }
    if (++waiting < window || row + step >= s.rows || !partial) continue;
    waiting = 0;
    if (!first) sums.add(lane, end, window_sums, window_stride);
    sums.move(lane, end, window_sums, window_stride);
    first = false;
  }
  if (!partial) return;
  if (!first) sums.add(lane, end, window_sums, window_stride);
  __syncthreads();                                      // all are done with the ring
  float* const all = reinterpret_cast<float*>(memory);  // [groups][count][columns]
  sums.move(lane, end, all + group * count * columns, columns);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count * cols; i += R::groups * R::threads) {
    const int q = i < cols ? 0 : 1;
    const int c = i - q * cols;
    float sum = all[q * columns + before(0) + c];
#pragma unroll
    for (int g = 1; g < R::groups; ++g) sum += all[(g * count + q) * columns + before(g) + c];
    partial[(q * clusters + cluster) * s.cols + first_column + c] = sum;
  }
#endif
}

}  // namespace ebb::gpu
