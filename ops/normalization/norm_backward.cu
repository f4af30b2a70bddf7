#include <cuda_pipeline.h>

#include <algorithm>
#include <numeric>

#include "ebb/ops/normalization/norm_backward.cuh"

// The backward pass. Who takes which rows, the first that can:
//
//   f32 and bf16 on Hopper, from spread_bytes()  norm_spread.cu, all over the GPU
//   the same, few() in one wave of blocks        norm_few.cu, in clusters of blocks
//   the same, of more than 512 bytes             norm_ring.cu, in a block or a cluster
//   others, too long for a block's registers     norm_slices.cu, read twice
//   the rest                                     here
//
// Rows that fit a group's registers are read once, by a fixed number of groups that each walk many
// rows, read ahead, and keep the columns' sums, dw and db, in registers; a second stage adds what
// the blocks found.
namespace ebb {
namespace gpu {
namespace {

// Rows that a thread reads ahead: its packs of x and of dy, each in a place of its own in shared
// memory.
template <class L, int packs, int threads, bool packed>
struct Ahead {
  using P = typename L::P;
  static constexpr int inputs = 2;
  static constexpr int stage_bytes = inputs * packs * threads * 16;
  P* memory;

  __device__ P* place(int stage, int input, int k) const {
    return memory + ((stage * inputs + input) * packs + k) * threads + threadIdx.x;
  }
  // Of the row at element `begin`; `end` is that of the tensor, maybe within a pack.
  template <class T>
  __device__ void fetch(const L& lanes, int stage, const T* x, const T* dy, std::int64_t begin,
                        std::int64_t end) const {
    const T* const from[] = {x, dy};
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      if (!lanes.has(k)) continue;
      const std::int64_t at = begin + lanes.at(k);
#pragma unroll
      for (int i = 0; i < inputs; ++i) {
        if (packed || at + L::width <= end)
          __pipeline_memcpy_async(place(stage, i, k), from[i] + at, sizeof(P));
        else
          for (int j = 0; j < end - at; ++j) place(stage, i, k)->v[j] = from[i][at + j];
      }
    }
  }
  static __device__ void wait(int stages) {
    if (stages == 3) return __pipeline_wait_prior(2);
    if (stages == 2) return __pipeline_wait_prior(1);
    __pipeline_wait_prior(0);
  }
};

// a and b over the group; `places` alternate, so that one barrier is enough.
template <class C, int group>
__device__ void reduce_both(C& a, C& b, C* places) {
  constexpr int span = group < warp_size ? group : warp_size;
  constexpr int warps = group / span;
  a = warp_reduce<span>(a, Sum{});
  b = warp_reduce<span>(b, Sum{});
  if constexpr (warps > 1) {
    if (threadIdx.x % span == 0) {
      places[threadIdx.x / span] = a;
      places[warps + threadIdx.x / span] = b;
    }
    __syncthreads();
    a = places[0];
    b = places[warps];
#pragma unroll
    for (int w = 1; w < warps; ++w) {
      a += places[w];
      b += places[warps + w];
    }
  }
}

// A lane's sums for its columns, which blocks leave as [count][blocks][cols].
template <class C, class L, int group, int packs, int count>
struct ColumnSums {
  C v[count][packs][L::width] = {};
  bool first = true;

  // Groups of a block take turns in `scratch`, [count][cols].
  __device__ void flush(const L& lanes, C* partial, C* scratch) {
    C* const to = partial + static_cast<std::int64_t>(blockIdx.x) * lanes.cols;
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * lanes.cols;
    if constexpr (group > warp_size) {
      lanes.each([&](int k, int j) {
#pragma unroll
        for (int q = 0; q < count; ++q) {
          C& at = to[q * stride + lanes.at(k) + j];
          at = first ? v[q][k][j] : at + v[q][k][j];
          v[q][k][j] = 0;
        }
      });
    } else {
      const int mine = threadIdx.x / group;
      for (int g = 0; g < static_cast<int>(blockDim.x) / group; ++g) {
        if (g == mine)
          lanes.each([&](int k, int j) {
#pragma unroll
            for (int q = 0; q < count; ++q) {
              C& at = scratch[q * lanes.cols + lanes.at(k) + j];
              at = g == 0 ? v[q][k][j] : at + v[q][k][j];
              v[q][k][j] = 0;
            }
          });
        __syncthreads();
      }
      for (int c = threadIdx.x; c < lanes.cols; c += blockDim.x)
#pragma unroll
        for (int q = 0; q < count; ++q) {
          C& at = to[q * stride + c];
          at = first ? scratch[q * lanes.cols + c] : at + scratch[q * lanes.cols + c];
        }
      __syncthreads();
    }
    first = false;
  }
};

// Groups of more than a warp have a block for themselves.
constexpr int block_threads(int group, int small) { return group <= warp_size ? small : group; }

constexpr int backward_threads = 256;  // of a block with several groups

// 512 threads a multiprocessor, and at most 128 registers each.
template <class T, int group, int packs, bool packed, bool centred>
__global__ void __launch_bounds__(block_threads(group, backward_threads),
                                  512 / block_threads(group, backward_threads))
    backward_kernel(const T* x, const T* dy, const T* weight, const double* mean,
                    const Compute<T>* rstd, std::int64_t rows, int cols, int period, int stages,
                    T* dx, Compute<T>* partial) {
  using C = Compute<T>;
  using L = Lanes<T, group, packs, packed>;
  using P = typename L::P;
  constexpr int width = L::width;
  constexpr int threads = block_threads(group, backward_threads);
  constexpr int count = centred ? 2 : 1;
  constexpr int window = 64;  // rows added up before they join the earlier ones
  extern __shared__ __align__(16) unsigned char memory[];
  const Ahead<L, packs, threads, packed> buffer{reinterpret_cast<P*>(memory)};
  C* const scratch = reinterpret_cast<C*>(memory + stages * buffer.stage_bytes);
  const std::int64_t groups = static_cast<std::int64_t>(gridDim.x) * (threads / group);
  std::int64_t row = first_row(
      static_cast<std::int64_t>(blockIdx.x) * (threads / group) + threadIdx.x / group, period);
  const L lanes{cols, static_cast<int>(threadIdx.x % group), static_cast<int>(row * cols % width)};
  P w[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) w[k] = lanes.load(weight, k);
  const auto fetch = [&](int stage, std::int64_t from) {
    if (from < rows) buffer.fetch(lanes, stage, x, dy, from * cols, rows * cols);
    __pipeline_commit();
  };
  for (int s = 0; s < stages; ++s) fetch(s, row + s * groups);
  double next_mean = centred && row < rows ? mean[row] : 0.0;
  C next_r = row < rows ? rstd[row] : C(0);
  ColumnSums<C, L, group, packs, count> sums;
  int waiting = 0;
  int stage = 0;
  const std::int64_t rounds = divide_up(rows, groups);
  for (std::int64_t round = 0; round < rounds; ++round, row += groups) {
    buffer.wait(stages);
    const bool inside = row < rows;
    const C r = next_r;
    const Hat<C> hat(next_mean, r);
    if (row + groups < rows) {
      if constexpr (centred) next_mean = mean[row + groups];
      next_r = rstd[row + groups];
    }
    C a = 0;
    C b = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      if (!inside || !lanes.has(k)) continue;
      C d[width];
      C h[width];
      upstream_and_hat(lanes, k, true, hat, *buffer.place(stage, 0, k), *buffer.place(stage, 1, k),
                       d, h);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const C g = rounded_product(d[j], widen(w[k], j));
        a += g;
        b += g * h[j];
        sums.v[0][k][j] += d[j] * h[j];
        if constexpr (centred) sums.v[1][k][j] += d[j];
      }
    }
    reduce_both<C, group>(a, b, scratch + (round & 1) * (2 * threads / warp_size));
    const C n = static_cast<C>(cols);
    const RowGradient<C> gradient(hat, r, centred ? a / n : C(0), b / n);
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      if (!inside || !lanes.has(k)) continue;
      const P in = *buffer.place(stage, 0, k);
      const P up = *buffer.place(stage, 1, k);
      C out[width];
#pragma unroll
      for (int j = 0; j < width; ++j)
        out[j] = gradient(rounded_product(widen(up, j), widen(w[k], j)), widen(in, j));
      lanes.store(dx + row * cols, k, narrow<T>(out));
    }
    fetch(stage, row + stages * groups);
    if (++stage == stages) stage = 0;
    if (++waiting == window || round + 1 == rounds) {
      waiting = 0;
      if (partial) sums.flush(lanes, partial, scratch);
    }
  }
}

// go.operator()<group, packs>() with the smallest group that holds a row.
template <class T, class Go>
void with_group(std::int64_t packs, const Go& go) {
  if (packs <= 8) return go.template operator()<8, 1>();
  if (packs <= 32) return go.template operator()<32, 1>();
  if (packs <= 96) return go.template operator()<32, 3>();
  if constexpr (sizeof(T) == 2) {
    if (packs <= 128) return go.template operator()<64, 2>();
    if (packs <= 256) return go.template operator()<128, 2>();
    if (packs <= 512) return go.template operator()<256, 2>();
    go.template operator()<512, 2>();
  } else {
    if (packs <= 192) return go.template operator()<64, 3>();
    if (packs <= 512) return go.template operator()<128, 4>();
    if (packs <= 1024) return go.template operator()<256, 4>();
    go.template operator()<512, 4>();
  }
}

// From how many bytes clusters are slower than all blocks of the GPU, or cannot have the row.
template <class T>
constexpr std::int64_t spread_bytes(std::int64_t rows) {
  constexpr std::int64_t unit = 1 << 18;
  if (rows <= 32) return unit;
  if (sizeof(T) == 2) return unit + 1;
  return rows <= 256 ? 2 * unit : 4 * unit;
}

template <class T, bool centred>
void backward(const NormalizeBackward& n) {
  using C = Compute<T>;
  constexpr int count = centred ? 2 : 1;
  const int period = row_period<T>(n.s.cols);
  const std::int64_t packs = packs_of<T>(n.s.cols, period);
  constexpr std::int64_t most_packs = sizeof(T) == 2 ? 1024 : 2048;
  const std::int64_t bytes = n.s.cols * std::int64_t{sizeof(T)};
  if (bytes >= spread_bytes<T>(n.s.rows) && normalize_spread_backward(n)) return;
  if (few(n.s) && normalize_few_backward(n)) return;
  if (bytes > 512 && normalize_ring_backward(n)) return;
  if (packs > most_packs || few(n.s)) return normalize_slices_backward(n);
  with_group<T>(packs, [&]<int group, int each>() {
    constexpr int threads = block_threads(group, backward_threads);
    constexpr int per_block = threads / group;
    constexpr std::int64_t most = multiprocessors_used * 512 / threads;  // one wave
    const std::int64_t unit = period / std::gcd(period, per_block);      // blocks
    const std::int64_t wanted = divide_up<std::int64_t>(n.s.rows, per_block * unit);
    const std::int64_t blocks = std::min(wanted, most / unit) * unit;
    constexpr int stage = 2 * each * threads * 16;
    const std::int64_t shared = per_block == 1 ? 4 * threads / warp_size : n.s.cols * count;
    const int scratch = static_cast<int>(shared * sizeof(C));
    if (stage + scratch > block_memory()) return normalize_slices_backward(n);
    const int room = block_memory() * threads / 512 - scratch - 2048;
    const int stages = std::clamp(room / stage, 1, 3);
    ParameterSums<T, count> sums(n, blocks);
    const auto kernel = period == 1 ? backward_kernel<T, group, each, true, centred>
                                    : backward_kernel<T, group, each, false, centred>;
    launch(n.op, kernel, dim3(static_cast<unsigned>(blocks)), threads,
           static_cast<size_t>(stages * stage + scratch), n.x.data<T>(), n.dy.data<T>(),
           data_or_null<T>(n.weight), data_or_null<double>(n.mean), n.rstd.data<C>(), n.s.rows,
           n.s.cols, period, stages, n.dx.data<T>(), sums.data());
    sums.add_up();
  });
}

}  // namespace
}  // namespace gpu

void gpu::normalize_rows_backward(const char* op, const Tensor& x, const Tensor& dy,
                                  const NormRows& s, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  if (x.numel() == 0) {  // without a row, sums are 0
    if (dweight.defined()) dweight.fill_(0);
    if (dbias.defined()) dbias.fill_(0);
    return;
  }
  const NormalizeBackward n{op, x, dy, s, weight, mean, rstd, dx, dweight, dbias};
  with_norm<float, double, bf16>(n, [&]<class T, bool centred>() { backward<T, centred>(n); });
}

}  // namespace ebb
