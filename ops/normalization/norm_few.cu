#include <algorithm>
#include <bit>

#include "ebb/ops/exchange.cuh"
#include "ebb/ops/normalization/norm_backward.cuh"

// The backward pass of few rows on Hopper. A row lies in the registers of a cluster's blocks, a
// slice each, while they tell each other its sums. Meanwhile every block adds up dw and db of its
// share of the columns, over all rows: that reads x and dy a second time, but from the second-level
// cache, and so no block waits for one that has another row.
namespace ebb {
namespace gpu {
namespace {

constexpr int few_threads = 512;

struct FewRows {
  std::int64_t rows;
  std::int64_t cols;
  int blocks;  // of a row
  int slice;   // columns of each but the last
  int share;   // columns whose dw and db a block finds
  int across;  // threads that have a pack of the share each, as others do of further rows
};

template <class T, int count>
struct FewArguments {
  const T* x;
  const T* dy;
  const T* weight;     // or null
  const double* mean;  // or null
  const float* rstd;
  T* dx;
  AffineGradients<T, count> gradients;
  __device__ Hat<float> hat(std::int64_t row) const {
    return {count == 2 ? mean[row] : 0.0, rstd[row]};
  }
};

// dw and db of this block's share. The threads that have the same columns add up through `memory`.
template <class T, int count>
__device__ void add_columns(const FewArguments<T, count>& of, const FewRows& s, float* memory) {
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  using Sums = Pack<float, width>;
  const int lanes = few_threads / s.across;
  const int lane = static_cast<int>(threadIdx.x) / s.across;
  const int own = static_cast<int>(threadIdx.x) % s.across * width;
  const int span = s.across * width;
  const std::int64_t first = std::int64_t{blockIdx.x} * s.share;
  const int n = static_cast<int>(min(std::int64_t{s.share}, s.cols - first));
  for (int base = 0; base < n; base += span) {
    float sum[count][width] = {};
    if (base + own < n)
#pragma unroll(width == 8 ? 2 : 4)
      for (int row = lane; row < static_cast<int>(s.rows); row += lanes) {
        const std::int64_t at = row * s.cols + first + base + own;
        const P in = load_if<width>(true, of.x + at);
        const P up = load_if<width>(true, of.dy + at);
        const Hat<float> hat = of.hat(row);
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const float d = widen(up, j);
          sum[0][j] += d * hat(widen(in, j));
          if constexpr (count == 2) sum[1][j] += d;
        }
      }
    if (base > 0) __syncthreads();
#pragma unroll
    for (int q = 0; q < count; ++q)
      store(reinterpret_cast<Sums*>(memory + (lane * count + q) * span + own),
            narrow<float>(sum[q]));
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < min(span, n - base); c += few_threads) {
      double all[count] = {};
      for (int l = 0; l < lanes; ++l)
#pragma unroll
        for (int q = 0; q < count; ++q)
          all[q] += static_cast<double>(memory[(l * count + q) * span + c]);
      of.gradients(first + base + c, all);
    }
  }
}

template <class T, int count, int packs>
__global__ void __launch_bounds__(few_threads, 1)
    few_backward_kernel(FewArguments<T, count> of, FewRows s) {
#if __CUDA_ARCH__ >= 900
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  constexpr int warps = few_threads / warp_size;
  __shared__ Exchange<2> exchange;
  __shared__ double of_warps[warps][2];
  __shared__ __align__(16) float memory[count * width * few_threads];
  const int rank = static_cast<int>(blockIdx.x) % s.blocks;
  const std::int64_t row = static_cast<int>(blockIdx.x) / s.blocks;
  const std::int64_t first = std::int64_t{rank} * s.slice;
  const std::int64_t begin = row * s.cols + first;
  const int n = static_cast<int>(min(std::int64_t{s.slice}, s.cols - first));
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const auto at = [](int k) { return (k * few_threads + static_cast<int>(threadIdx.x)) * width; };
  P in[packs];
  P up[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    in[k] = load_if<width>(at(k) < n, of.x + begin + at(k));
    up[k] = load_if<width>(at(k) < n, of.dy + begin + at(k));
  }
  if (threadIdx.x == 0) {
    exchange.init();
    hopper::show_barriers();
  }
  meet(s.blocks);
  const float r = of.rstd[row];
  const Hat<float> hat = of.hat(row);
  const auto each = [&](const auto& f) {  // f(k, j, g)
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      if (at(k) >= n) continue;
      const P w = load_if<width>(of.weight != nullptr, of.weight + first + at(k));
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float d = widen(up[k], j);
        f(k, j, of.weight ? rounded_product(d, widen(w, j)) : d);
      }
    }
  };
  float a = 0;
  float b = 0;
  each([&](int k, int j, float g) {
    a += g;
    b += g * hat(widen(in[k], j));
  });
  double sums[] = {warp_reduce(static_cast<double>(a), Sum{}),
                   warp_reduce(static_cast<double>(b), Sum{})};
  if (lane < 2) of_warps[threadIdx.x / warp_size][lane] = lane == 0 ? sums[0] : sums[1];
  __syncthreads();
#pragma unroll
  for (int q = 0; q < 2; ++q) sums[q] = warp_reduce<warps>(of_warps[lane % warps][q], Sum{});
  if (s.blocks > 1)
    exchange.tell(
        0, s.blocks, rank, static_cast<int>(threadIdx.x),
        {__builtin_bit_cast(std::uint64_t, sums[0]), __builtin_bit_cast(std::uint64_t, sums[1])});
  if (of.gradients.dweight || of.gradients.dbias) add_columns(of, s, memory);
  if (s.blocks > 1) {
    const auto* const all = exchange.of_all(0);
    sums[0] = sums[1] = 0;
    for (int block = 0; block < s.blocks; ++block)
#pragma unroll
      for (int q = 0; q < 2; ++q) sums[q] += __builtin_bit_cast(double, all[block][q]);
  }
  const double cols = static_cast<double>(s.cols);
  const RowGradient<float> gradient(hat, r, count == 2 ? static_cast<float>(sums[0] / cols) : 0.0f,
                                    static_cast<float>(sums[1] / cols));
  float out[width];
  each([&](int k, int j, float g) {
    out[j] = gradient(g, widen(in[k], j));
    if (j == width - 1) store_words(of.dx + begin + at(k), narrow<T>(out));
  });
#endif
}

template <class T, int count, int packs>
bool launch_few(const NormalizeBackward& n, FewRows s) {
  constexpr int width = pack_size<T>;
  constexpr auto kernel = few_backward_kernel<T, count, packs>;
  const auto blocks = static_cast<unsigned>(s.blocks);
  const Together together{blocks * static_cast<unsigned>(s.rows), few_threads, 0, blocks};
  if (!hopper::has_barriers<kernel>(n.op) || clusters_at_a_time<kernel>(n.op, together) == 0)
    return false;
  const auto columns = [&](std::int64_t parts) {
    return static_cast<int>(divide_up(divide_up<std::int64_t>(s.cols, width), parts)) * width;
  };
  s.slice = columns(s.blocks);
  s.share = columns(s.rows * s.blocks);
  s.across = static_cast<int>(std::bit_ceil(static_cast<unsigned>(s.share / width)));
  s.across = std::min(s.across, few_threads);
  const FewArguments<T, count> of{n.x.data<T>(),
                                  n.dy.data<T>(),
                                  data_or_null<T>(n.weight),
                                  data_or_null<double>(n.mean),
                                  n.rstd.data<float>(),
                                  n.dx.data<T>(),
                                  AffineGradients<T, count>(n)};
  launch_together(n.op, kernel, together, of, s);
  return true;
}

template <class T, bool centred>
bool backward(const NormalizeBackward& n) {
  constexpr int count = centred ? 2 : 1;
  constexpr int most = 8;  // packs of x and dy in a thread: 64 registers
  if (n.s.cols % pack_size<T> != 0) return false;
  const std::int64_t packs = n.s.cols / pack_size<T>;
  FewRows s{n.s.rows, n.s.cols, 1, 0, 0, 0};
  const auto fits = [&](std::int64_t each) { return packs <= s.blocks * each * few_threads; };
  const auto room = [&] { return s.rows * s.blocks * 2 <= multiprocessors_used; };
  while (s.blocks < most_cluster_blocks && room() && !fits(most / 4)) s.blocks *= 2;
  if (!fits(most)) return false;
  return fits(most / 2) ? launch_few<T, count, most / 2>(n, s) : launch_few<T, count, most>(n, s);
}

}  // namespace

bool normalize_few_backward(const NormalizeBackward& n) {
  if (!have_clusters()) return false;
  return try_norm(n, [&]<class T, bool centred>() { return backward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
