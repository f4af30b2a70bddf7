#include <algorithm>

#include "ebb/ops/hopper.cuh"
#include "ebb/ops/normalization/norm_rows.cuh"

// Rows on Hopper: a group of threads has a few rows at a time in its registers, and the next ones
// on their way into a ring in shared memory, which one thread keeps filling by bulk copies. Threads
// own columns: dw and db stay in registers over all rows; then the groups of a block add up theirs,
// and a second stage what the blocks have found.
namespace ebb {
namespace gpu {
namespace {

constexpr int ring_window = 64;  // rows added up before they join the earlier ones

// A group's threads, their packs of a row, the rows of a step, the steps in the ring. A block,
// alone on its multiprocessor, is as many groups as make 512 threads.
template <int threads_, int packs_, int rows_, int stages_>
struct Ring {
  static constexpr int threads = threads_;
  static constexpr int packs = packs_;
  static constexpr int rows = rows_;
  static constexpr int stages = stages_;
  static constexpr int groups = 512 / threads;
  static constexpr int place = threads * packs;  // packs of a row, beyond whose end zeros stay
  static constexpr int bytes = groups * stages * rows * 2 * place * 16;
};

// The threads of a group wait for each other.
template <int threads>
__device__ void meet(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

// What a thread has found of its columns, which it adds to or moves to a place of its group.
template <class T, int count, int packs, int threads>
struct OwnSums {
  static constexpr int width = pack_size<T>;
  using Row = Pack<float, width>;
  float v[count][packs][width] = {};

  template <class F>
  __device__ void each(int lane, int cols, const F& f) {
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const int column = (k * threads + lane) * width;
        if (column < cols) f(q, column, v[q][k]);
      }
  }
  __device__ void add(int lane, int cols, const float* from, std::int64_t stride) {
    each(lane, cols, [&](int q, int column, float(&sum)[width]) {
      const Row row = *reinterpret_cast<const Row*>(from + q * stride + column);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += row.v[j];
    });
  }
  __device__ void move(int lane, int cols, float* to, std::int64_t stride) {
    each(lane, cols, [&](int q, int column, float(&sum)[width]) {
      store(reinterpret_cast<Row*>(to + q * stride + column), narrow<float>(sum));
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] = 0;
    });
  }
};

template <class T, class R, bool centred>
__global__ void __launch_bounds__(R::threads* R::groups, 1)
    ring_backward_kernel(const T* x, const T* dy, const T* weight, const double* mean,
                         const float* rstd, std::int64_t rows, int cols, T* dx, float* windows,
                         float* partial) {
#if __CUDA_ARCH__ >= 900
  constexpr int width = pack_size<T>;
  constexpr int packs = R::packs;
  constexpr int most = R::rows;
  constexpr int count = centred ? 2 : 1;
  constexpr int warps = R::threads / warp_size;
  constexpr int window = ring_window / most;  // steps
  using P = Pack<T, width>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ hopper::Barrier barriers[R::groups][R::stages];
  __shared__ __align__(16) float sums_of[R::groups][2][warps][2 * most];
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
  for (int i = lane; i < R::bytes / R::groups / 16; i += R::threads) ring[i] = {};
  hopper::show_barriers();
  hopper::show_to_products();
  __syncthreads();
  const std::int64_t groups = static_cast<std::int64_t>(gridDim.x) * R::groups;
  const std::int64_t step = groups * most;
  std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * R::groups + group) * most;
  const auto fetch = [&](int stage, std::int64_t from) {
    if (lane != 0 || from >= rows) return;
    const int here = rows - from < most ? static_cast<int>(rows - from) : most;
    const int bytes = cols * static_cast<int>(sizeof(T));
    full[stage].arrive_expecting(2 * here * bytes);
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (i >= here) break;
      hopper::copy(place(stage, i, 0), x + (from + i) * cols, bytes, full[stage]);
      hopper::copy(place(stage, i, 1), dy + (from + i) * cols, bytes, full[stage]);
    }
  };
  for (int s = 0; s + 1 < R::stages; ++s) fetch(s, row + s * step);
  P w[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    float v[width];
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = 1;
    w[k] = narrow<T>(v);
    if (weight) w[k] = load_if<width>(column(k) < cols, weight + column(k));
  }
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
  const float part = 1 / static_cast<float>(cols);
  OwnSums<T, count, packs, R::threads> sums;
  float* const window_sums = windows + (row / most) * cols;
  bool first = true;
  int waiting = 0;
  int stage = 0;
  int phase = 0;
  for (int turn = 0; row - group * most < rows; row += step, turn ^= 1) {
    if (row >= rows) {  // all groups meet as often: racecheck only counts
      meet<R::threads>(1 + group);
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
#pragma unroll
    for (int i = 1; i < most; ++i)
      if (row + i >= rows)  // there is an older row in its place
#pragma unroll
        for (int k = 0; k < packs; ++k)
          place(stage, i, 0)[k * R::threads + lane] =
              place(stage, i, 1)[k * R::threads + lane] = {};
    float of[2 * most] = {};  // Σ g and Σ g x̂ of each row
    P in[most][packs];
    P up[most][packs];
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int i = 0; i < most; ++i) {
        in[i][k] = __builtin_bit_cast(P, place(stage, i, 0)[k * R::threads + lane]);
        up[i][k] = __builtin_bit_cast(P, place(stage, i, 1)[k * R::threads + lane]);
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
    meet<R::threads>(1 + group);  // all are done with the step before: its place is free
    fetch(stage == 0 ? R::stages - 1 : stage - 1, row + (R::stages - 1) * step);
#pragma unroll
    for (int i = 0; i < 2 * most; ++i) {
      of[i] = found[turn][0][i];
#pragma unroll
      for (int v = 1; v < warps; ++v) of[i] += found[turn][v][i];
    }
#pragma unroll
    for (int i = 0; i < most; ++i) {
      // g − a − x̂ b = g − (a + rest b) − half(x) (twice_r b)
      const float b = of[2 * i + 1] * part;
      const float shift = (centred ? of[2 * i] * part : 0.0f) + hat[i].rest * b;
      const float slope = hat[i].twice_r * b;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        float out[width];
#pragma unroll
        for (int j = 0; j < width; ++j)
          out[j] = r[i] * (rounded_product(widen(up[i][k], j), widen(w[k], j)) - shift -
                           hat[i].half(widen(in[i][k], j)) * slope);
        if (column(k) < cols && row + i < rows)
          put(reinterpret_cast<P*>(dx + (row + i) * cols + column(k)), narrow<T>(out));
      }
    }
    if (++stage == R::stages) {
      stage = 0;
      phase ^= 1;
    }
    if (++waiting < window || row + step >= rows || !partial) continue;
    waiting = 0;
    if (!first) sums.add(lane, cols, window_sums, groups * cols);
    sums.move(lane, cols, window_sums, groups * cols);
    first = false;
  }
  if (!partial) return;
  if (!first) sums.add(lane, cols, window_sums, groups * cols);
  __syncthreads();                                      // all are done with the ring
  float* const all = reinterpret_cast<float*>(memory);  // [groups][count][cols]
  sums.move(lane, cols, all + group * count * cols, cols);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < count * cols; c += R::groups * R::threads) {
    float sum = all[c];
#pragma unroll
    for (int g = 1; g < R::groups; ++g) sum += all[g * count * cols + c];
    const int q = c < cols ? 0 : 1;
    partial[(static_cast<std::int64_t>(q) * gridDim.x + blockIdx.x) * cols + c - q * cols] = sum;
  }
#endif
}

// go.operator()<Ring>() with the fewest threads that hold a row.
template <class T, class Go>
void with_ring(std::int64_t packs, const Go& go) {
  if (packs <= 64) return go.template operator()<Ring<64, 1, 2, 4>>();
  if (packs <= 96) return go.template operator()<Ring<96, 1, 2, 4>>();
  if (packs <= 128) return go.template operator()<Ring<128, 1, 2, 4>>();
  if (packs <= 192) return go.template operator()<Ring<192, 1, 2, 4>>();
  if (packs <= 256) return go.template operator()<Ring<256, 1, 2, 4>>();
  if (packs <= 384) return go.template operator()<Ring<192, 2, 1, 4>>();
  if (packs <= 512) return go.template operator()<Ring<256, 2, 1, 4>>();
  if (packs <= 1024) return go.template operator()<Ring<512, 2, 1, 4>>();
  if constexpr (sizeof(T) == 4) go.template operator()<Ring<512, 4, 1, 3>>();
}

template <class T, bool centred>
bool backward(const NormalizeBackward& n) {
  constexpr int count = centred ? 2 : 1;
  constexpr std::int64_t multiprocessors_used = 132;  // of every GPU: all add in one order
  const T* const w = data_or_null<T>(n.weight);
  const std::int64_t packs = n.s.cols / pack_size<T>;
  if (n.s.cols % pack_size<T> != 0 || packs <= 32 || packs > (sizeof(T) == 2 ? 1024 : 2048) ||
      compute_capability() < 90 ||
      !hopper::has_barriers<ring_backward_kernel<float, Ring<64, 1, 2, 4>, true>>(n.op) ||
      !all_aligned(n.x.data<T>(), n.dy.data<T>(), w, n.dx.data<T>()))
    return false;
  with_ring<T>(packs, [&]<class R>() {
    const std::int64_t blocks = std::min<std::int64_t>(
        divide_up<std::int64_t>(n.s.rows, R::rows * R::groups), multiprocessors_used);
    const std::int64_t groups = blocks * R::groups;
    ParameterSums<T, count> sums(n, blocks);
    ParameterSums<T, count> windows(n, n.s.rows > groups * ring_window ? groups : 0);
    launch(n.op, ring_backward_kernel<T, R, centred>, dim3(static_cast<unsigned>(blocks)),
           R::threads * R::groups, R::bytes, n.x.data<T>(), n.dy.data<T>(), w,
           data_or_null<double>(n.mean), n.rstd.data<float>(), n.s.rows, n.s.cols, n.dx.data<T>(),
           windows.data(), sums.data());
    sums.add_up();
  });
  return true;
}

}  // namespace

bool normalize_ring_backward(const NormalizeBackward& n) {
  return try_norm(n, [&]<class T, bool centred>() { return backward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
