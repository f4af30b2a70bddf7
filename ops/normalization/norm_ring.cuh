// Internal: not in <ebb/ebb.h>, not installed.
// Rows of the backward pass on Hopper: a group of threads has a few rows at a time in its
// registers, and the next ones on their way into a ring in shared memory, which one thread keeps
// filling by bulk copies. Threads own columns: dw and db stay in registers over all rows; then the
// groups of a block add up theirs, and a second stage what the blocks have found. Of longer rows
// the blocks of a cluster have a slice each. Rows may begin anywhere: copies go from one multiple
// of 16 bytes to another.
#pragma once
#include "ebb/ops/exchange.cuh"
#include "ebb/ops/normalization/norm_backward.cuh"

namespace ebb::gpu {

inline constexpr int ring_window = 64;  // rows added up before they join the earlier ones

// A group's threads, their packs of a row, the rows of a step, the steps in the ring. A block,
// alone on its multiprocessor, is as many groups as make 512 threads. Where rows are not `packed`
// into 16 bytes, threads have single elements, as many.
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
  static constexpr int place = threads * packs + (packed ? 0 : 1);  // of 16 bytes, for a row
  static constexpr int bytes = groups * stages * rows * 2 * place * 16;
};

// A row's columns that a block has: all, or a slice.
struct Slice {
  int blocks;  // of a row
  int width;   // columns of each but the last
};

// The threads of a group wait for each other.
template <int threads>
__device__ void meet_in_group(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

// What of a row is copied: `count` elements from `first` on, the row's after those `before` it, to
// a multiple of 16 bytes, but no more than there are of the tensor.
template <class T, bool packed>
struct Extent {
  std::int64_t first;
  int before;
  int count;
  __device__ Extent(std::int64_t begin, int cols, std::int64_t end) {
    constexpr int width = pack_size<T>;
    before = packed ? 0 : static_cast<int>(begin % width);
    first = begin - before;
    count = packed ? cols : divide_up(before + cols, width) * width;
    if (!packed && count > end - first) count -= width;
  }
  __device__ int bytes() const { return count * static_cast<int>(sizeof(T)); }
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
                         const float* rstd, std::int64_t rows, std::int64_t row_length, Slice slice,
                         T* dx, float* windows, float* partial) {
#if __CUDA_ARCH__ >= 900
  constexpr int width = R::packed ? pack_size<T> : 1;
  constexpr int packs = R::packs * pack_size<T> / width;
  constexpr int most = R::rows;
  constexpr int count = centred ? 2 : 1;
  constexpr int warps = R::threads / warp_size;
  constexpr int window = ring_window / most;  // steps
  using P = Pack<T, width>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ hopper::Barrier barriers[R::groups][R::stages];
  __shared__ __align__(16) float sums_of[R::groups][2][warps][2 * most];
  __shared__ Exchange<most> sums_of_blocks[R::sliced ? R::groups : 1];
  const int blocks = R::sliced ? slice.blocks : 1;
  const std::int64_t cluster = static_cast<int>(blockIdx.x) / blocks;
  const std::int64_t clusters = static_cast<int>(gridDim.x) / blocks;
  const int rank = static_cast<int>(blockIdx.x) % blocks;
  const std::int64_t first_column = R::sliced ? std::int64_t{rank} * slice.width : 0;
  const std::int64_t left = row_length - first_column;
  const int cols = static_cast<int>(R::sliced && left > slice.width ? slice.width : left);
  x += first_column;
  dy += first_column;
  dx += first_column;
  const int group = static_cast<int>(threadIdx.x) / R::threads;
  const int lane = static_cast<int>(threadIdx.x) % R::threads;
  uint4* const ring = reinterpret_cast<uint4*>(memory + group * (R::bytes / R::groups));
  hopper::Barrier(&full)[R::stages] = barriers[group];
  float(&found)[2][warps][2 * most] = sums_of[group];
  const auto column = [=](int k) { return (k * R::threads + lane) * width; };
  const auto place = [=](int stage, int row, int input) {
    return ring + ((stage * most + row) * 2 + input) * R::place;
  };
  if (lane == 0)
    for (hopper::Barrier& barrier : full) barrier.init(1);
  if constexpr (R::packed)  // beyond a row's end zeros stay
    for (int i = lane; i < R::bytes / R::groups / 16; i += R::threads) ring[i] = {};
  if (R::sliced && lane == 0) sums_of_blocks[group].init();
  hopper::show_barriers();
  hopper::show_to_products();
  gpu::meet(blocks);
  const std::int64_t groups = clusters * R::groups;
  const std::int64_t step = groups * most;
  std::int64_t row = (cluster * R::groups + group) * most;
  const auto extent = [=](std::int64_t row) {
    return Extent<T, R::packed>(row * row_length, cols, rows * row_length - first_column);
  };
  const auto fetch = [&](int stage, std::int64_t from) {
    if (lane != 0 || from >= rows) return;
    int bytes = 0;
#pragma unroll
    for (int i = 0; i < most; ++i)
      if (from + i < rows) bytes += extent(from + i).bytes();
    full[stage].arrive_expecting(2 * bytes);
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (from + i >= rows) break;
      const Extent<T, R::packed> e = extent(from + i);
      if (e.bytes() == 0) continue;
      hopper::copy(place(stage, i, 0), x + e.first, e.bytes(), full[stage]);
      hopper::copy(place(stage, i, 1), dy + e.first, e.bytes(), full[stage]);
    }
  };
  for (int s = 0; s + 1 < R::stages; ++s) fetch(s, row + s * step);
  P w[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k)
    w[k] = weight_pack<width>(weight, column(k) < cols, first_column + column(k));
  double next_mean[most];
  float next_r[most];
  const auto read_constants = [&](std::int64_t from) {
#pragma unroll
    for (int i = 0; i < most; ++i) {
      next_mean[i] = centred && from + i < rows ? mean[from + i] : 0.0;
      next_r[i] = from + i < rows ? rstd[from + i] : 0.0f;
    }
  };
  read_constants(row);
  const float part = 1 / static_cast<float>(row_length);
  OwnSums<count, packs, width, R::threads> sums;
  float* const window_sums = windows + (row / most) * row_length + first_column;
  const std::int64_t window_stride = groups * row_length;
  bool first = true;
  int waiting = 0;
  int steps = 0;
  int stage = 0;
  int phase = 0;
  for (int turn = 0; row - group * most < rows; row += step, turn ^= 1) {
    if (row >= rows) {  // all groups meet as often: racecheck only counts
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
    const T* from[most][2];  // of rows that are not packed
    if constexpr (!R::packed)
#pragma unroll
      for (int i = 0; i < most; ++i) {
        const Extent<T, false> e = extent(row + i);
        const bool whole = e.before + cols <= e.count;  // or the tensor ends within a pack
        from[i][0] = whole ? reinterpret_cast<const T*>(place(stage, i, 0)) : x + e.first;
        from[i][1] = whole ? reinterpret_cast<const T*>(place(stage, i, 1)) : dy + e.first;
        from[i][0] += e.before;
        from[i][1] += e.before;
      }
    const auto read = [&](int i, int input, int k) -> P {
      if constexpr (R::packed) {
        if (row + i >= rows) return {};  // there is an older row in its place
        return __builtin_bit_cast(P, place(stage, i, input)[k * R::threads + lane]);
      } else {
        if (row + i >= rows || column(k) >= cols) return {};
        return {from[i][input][column(k)]};
      }
    };
    float of[2 * most] = {};  // Σ g and Σ g x̂ of each row
    P in[most][packs];
    P up[most][packs];
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int i = 0; i < most; ++i) {
        in[i][k] = read(i, 0, k);
        up[i][k] = read(i, 1, k);
        Hat<float> own = hat[i];
        if (column(k) >= cols) own.rest = own.twice_r = 0;  // 0 · x̂ of what is not there is 0
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const float d = widen(up[i][k], j);
          const float h = own(widen(in[i][k], j));
          const float g = rounded_product(d, widen(w[k], j));
          if constexpr (centred) of[2 * i] += g;
          of[2 * i + 1] += g * h;
          sums.v[0][k][j] += d * h;
          if constexpr (centred) sums.v[1][k][j] += d;
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
      const RowGradient<float> gradient(hat[i], r[i], of[2 * i] * part, of[2 * i + 1] * part);
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        float out[width];
#pragma unroll
        for (int j = 0; j < width; ++j)
          out[j] =
              gradient(rounded_product(widen(up[i][k], j), widen(w[k], j)), widen(in[i][k], j));
        if (column(k) < cols && row + i < rows)
          store_words(dx + (row + i) * row_length + column(k), narrow<T>(out));
      }
    }
    if (++stage == R::stages) {
      stage = 0;
      phase ^= 1;
    }
    if (++waiting < window || row + step >= rows || !partial) continue;
    waiting = 0;
    if (!first) sums.add(lane, cols, window_sums, window_stride);
    sums.move(lane, cols, window_sums, window_stride);
    first = false;
  }
  if (!partial) return;
  if (!first) sums.add(lane, cols, window_sums, window_stride);
  __syncthreads();                                      // all are done with the ring
  float* const all = reinterpret_cast<float*>(memory);  // [groups][count][cols]
  sums.move(lane, cols, all + group * count * cols, cols);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < count * cols; c += R::groups * R::threads) {
    float sum = all[c];
#pragma unroll
    for (int g = 1; g < R::groups; ++g) sum += all[g * count * cols + c];
    const int q = c < cols ? 0 : 1;
    partial[(q * clusters + cluster) * row_length + first_column + c - q * cols] = sum;
  }
#endif
}

}  // namespace ebb::gpu
