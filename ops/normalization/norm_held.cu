#include "ebb/ops/normalization/norm_held.cuh"

namespace ebb {
namespace gpu {
namespace {

template <class T, bool centred, int kept, int stored>
__global__ void __launch_bounds__(dealt_threads)
    held_forward_kernel(const T* x, const T* weight, const T* bias, Deal deal, double eps,
                        double2* partial, double* mean, Compute<T>* rstd, T* y) {
  using C = Compute<T>;
  using Packs = HeldPacks<T, 1, kept, stored>;
  using P = typename Packs::P;
  using W = typename Packs::W;
  constexpr int width = Packs::width;
  constexpr int parts = Packs::parts;
  constexpr int group = Packs::group;
  constexpr float small = centred ? 1.0f / 128 : 1.0f;  // differences of finite numbers overflow
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ RowPairs found;
  __shared__ double first[most_held_rows];
  __shared__ float4 hats[most_held_rows];  // half of μ, rest, twice r
  const int warp = static_cast<int>(threadIdx.x) % deal.across / warp_size;
  for (int i = static_cast<int>(threadIdx.x); i < most_held_rows * dealt_threads / warp_size;
       i += dealt_threads)
    found[0][i] = {0, 0};
  if (threadIdx.x < deal.rows)
    first[threadIdx.x] = centred ? static_cast<double>(widen(x[threadIdx.x * deal.cols])) : 0.0;
  __syncthreads();
  Packs packs(deal, memory, {x});
  packs.there([&](W& walk, const typename Packs::Item(&items)[group]) {
    float sums[2 * group];
    float origin[group];
    int row[group];
    int n[group];
#pragma unroll
    for (int u = 0; u < group; ++u, walk.forward()) {
      row[u] = walk.row();
      n[u] = walk.of_warp();
      C scale[parts];
#pragma unroll
      for (int k = 0; k < parts; ++k) scale[k] = walk.inside(k) ? small : C(0);
      origin[u] = 0;  // of so many of the warp's elements the mean, that no outlier carries it away
      if constexpr (centred) {
        const int lanes = n[u] < warp_size * width ? n[u] / width : warp_size;
        origin[u] = warp_reduce(items[u](0, 0) * scale[0], Sum{}) / static_cast<float>(lanes);
      }
      C& sum = sums[2 * u] = 0;
      C& square = sums[2 * u + 1] = 0;
#pragma unroll
      for (int j = 0; j < strip; ++j) {
        const C shift = scale[j / width] == 0 ? C(0) : origin[u];
        const C v = items[u](0, j) * scale[j / width] - shift;
        if constexpr (centred) sum += v;
        square += v * v;
      }
    }
    add_lanes<group>(sums, deal.turns < group, [&](int u, float sum, float square) {
      const int count = choose(n, u);
      if (count == 0) return;
      const int r = choose(row, u);
      const double off = static_cast<double>(choose(origin, u)) / small - first[r];
      const double by = static_cast<double>(sum) / small;
      double2& to = found[r][warp];
      to.x += by + count * off;
      to.y += static_cast<double>(square) / (small * small) + (2 * by + count * off) * off;
    });
  });
  add_blocks(deal, found, partial, [&](int row, double2 sum) {
    const double n = static_cast<double>(deal.cols);
    const double off = sum.x / n;
    const double square = sum.y - off * sum.x;
    const double m = centred ? first[row] + off : 0;
    const C r = static_cast<C>(1 / sqrt((square < 0 ? 0 : square) / n + eps));
    const Hat<C> hat(m, r);
    hats[row] = {hat.half_mean, hat.rest, hat.twice_r, 0};
    if (blockIdx.x > 0) return;
    if constexpr (centred) mean[row] = m;
    rstd[row] = r;
  });
  P w[parts] = {};
  P b[parts] = {};
  packs.back([&](const W& walk, const typename Packs::Item& item) {
    if (walk.at_last_row()) {
#pragma unroll
      for (int k = 0; k < parts; ++k) {
        w[k] = load_if<width>(weight && walk.has_column(k), weight + walk.column(k));
        b[k] = load_if<width>(bias && walk.has_column(k), bias + walk.column(k));
      }
    }
    if (!walk.has_row()) return;
    const float4 hat = hats[walk.row()];
#pragma unroll
    for (int k = 0; k < parts; ++k) {
      C out[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const C h = (C(0.5) * item(0, k * width + j) - hat.x) * hat.z + hat.y;
        out[j] = h * (weight ? widen(w[k], j) : C(1)) + widen(b[k], j);
      }
      if (walk.has_column(k)) put(reinterpret_cast<P*>(y + walk.place(k)), narrow<T>(out));
    }
  });
}

// Sums of a thread's columns, of its rows.
template <class T, int count>
struct OwnColumns {
  using C = Compute<T>;
  static constexpr int bytes = count * strip * dealt_threads * sizeof(C);
  C sum[count][strip] = {};

  // Threads with the same columns add up; all of the block call it.
  __device__ void add_rows(const Deal& d, C* memory) {
    if (d.across == dealt_threads) return;
    __syncthreads();
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int j = 0; j < strip; ++j)
        memory[(q * strip + j) * dealt_threads + threadIdx.x] = sum[q][j];
    __syncthreads();
    if (threadIdx.x >= d.across) return;
    for (int t = d.across; t < dealt_threads; t += d.across)
#pragma unroll
      for (int q = 0; q < count; ++q)
#pragma unroll
        for (int j = 0; j < strip; ++j)
          sum[q][j] += memory[(q * strip + j) * dealt_threads + threadIdx.x + t];
  }
  template <int width>
  __device__ void finish(T* const (&to)[2], const Walk<width>& walk) {
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int k = 0; k < strip / width; ++k) {
        C v[width];
#pragma unroll
        for (int j = 0; j < width; ++j) {
          v[j] = sum[q][k * width + j];
          sum[q][k * width + j] = 0;
        }
        if (to[q] && walk.has_column(k))
          put(reinterpret_cast<Pack<T, width>*>(to[q] + walk.column(k)), narrow<T>(v));
      }
  }
};

template <class T, int count, int kept, int stored>
__global__ void __launch_bounds__(dealt_threads)
    held_backward_kernel(const T* x, const T* dy, const T* weight, const double* mean,
                         const Compute<T>* rstd, Deal deal, double2* partial, T* dx,
                         AffineGradients<T, count> gradients) {
  using C = Compute<T>;
  using Packs = HeldPacks<T, 2, kept, stored>;
  using P = typename Packs::P;
  using W = typename Packs::W;
  constexpr int width = Packs::width;
  constexpr int parts = Packs::parts;
  constexpr int group = Packs::group;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ RowPairs found;
  __shared__ float4 hats[most_held_rows];    // half of μ, rest, twice r, r
  __shared__ float2 slopes[most_held_rows];  // dx = r (g − y − x half(x))
  const int warp = static_cast<int>(threadIdx.x) % deal.across / warp_size;
  for (int i = static_cast<int>(threadIdx.x); i < most_held_rows * dealt_threads / warp_size;
       i += dealt_threads)
    found[0][i] = {0, 0};
  if (threadIdx.x < deal.rows) {
    const Hat<C> hat(mean ? mean[threadIdx.x] : 0.0, rstd[threadIdx.x]);
    hats[threadIdx.x] = {hat.half_mean, hat.rest, hat.twice_r, rstd[threadIdx.x]};
  }
  __syncthreads();
  Packs packs(deal, memory, {x, dy});
  P w[parts] = {};
  const auto load_weight = [&](const W& walk) {
#pragma unroll
    for (int k = 0; k < parts; ++k)
      if (weight) w[k] = load_if<width>(walk.has_column(k), weight + walk.column(k));
  };
  const auto times_weight = [&](C d, int j) {
    return weight ? rounded_product(d, widen(w[j / width], j % width)) : d;
  };
  packs.there([&](W& walk, const typename Packs::Item(&items)[group]) {
    float sums[2 * group];
    int row[group];
    bool any[group];
#pragma unroll
    for (int u = 0; u < group; ++u, walk.forward()) {
      if (walk.at_first_row()) load_weight(walk);
      row[u] = walk.row();
      any[u] = walk.of_warp() > 0;
      const float4 hat = hats[any[u] ? row[u] : 0];
      C& a = sums[2 * u] = 0;
      C& b = sums[2 * u + 1] = 0;
#pragma unroll
      for (int j = 0; j < strip; ++j) {
        const C g = times_weight(items[u](1, j), j);
        a += g;
        const C h = (C(0.5) * items[u](0, j) - hat.x) * hat.z + hat.y;
        b += walk.inside(j / width) ? g * h : C(0);
      }
    }
    add_lanes<group>(sums, deal.turns < group, [&](int u, float a, float b) {
      if (!choose(any, u)) return;
      double2& to = found[choose(row, u)][warp];
      to.x += static_cast<double>(a);
      to.y += static_cast<double>(b);
    });
  });
  add_blocks(deal, found, partial, [&](int row, double2 sum) {
    const double n = static_cast<double>(deal.cols);
    const C b = static_cast<C>(sum.y / n);
    const C a = count == 2 ? static_cast<C>(sum.x / n) : C(0);
    slopes[row] = {hats[row].z * b, a + hats[row].y * b};
  });
  OwnColumns<T, count> sums;
  T* const to[2] = {gradients.dweight, gradients.dbias};
  packs.back([&](const W& walk, const typename Packs::Item& item) {
    if (walk.at_last_row()) load_weight(walk);
    if (walk.has_row()) {
      const float4 hat = hats[walk.row()];
      const float2 slope = slopes[walk.row()];
#pragma unroll
      for (int k = 0; k < parts; ++k) {
        if (!walk.has_column(k)) continue;
        C out[width];
#pragma unroll
        for (int i = 0; i < width; ++i) {
          const int j = k * width + i;
          const C d = item(1, j);
          const C half = C(0.5) * item(0, j) - hat.x;
          out[i] = hat.w * (times_weight(d, j) - slope.y - half * slope.x);
          sums.sum[0][j] += d * (half * hat.z + hat.y);
          if constexpr (count == 2) sums.sum[1][j] += d;
        }
        put(reinterpret_cast<P*>(dx + walk.place(k)), narrow<T>(out));
      }
    }
    if (!walk.at_first_row()) return;
    sums.add_rows(deal, reinterpret_cast<C*>(memory));
    if (threadIdx.x < deal.across) sums.finish(to, walk);
  });
}

constexpr int static_bytes = 20 * 1024;  // that the kernels have of shared memory beside the packs

template <class... X>
bool can_hold(const NormRows& s, int bytes, const X*... x) {
  return s.rows <= most_held_rows && s.cols % strip == 0 && all_aligned(x...) &&
         multiprocessors() >= dealt_blocks && block_memory() >= bytes + static_bytes;
}

template <class T, bool centred>
bool forward(const Normalize& n) {
  constexpr int parts = strip / pack_size<T>;
  constexpr int kept = 8 / parts;
  constexpr int stored = 24 / parts;
  constexpr int bytes = HeldPacks<T, 1, kept, stored>::bytes;
  const T* const w = data_or_null<T>(n.weight);
  const T* const b = data_or_null<T>(n.bias);
  if (!can_hold(n.s, bytes, n.x.data<T>(), w, b, n.y.data<T>())) return false;
  Tensor partial = empty({n.s.rows, dealt_blocks, 2}, {Dtype::f64, n.x.device()});
  launch_together(n.op, held_forward_kernel<T, centred, kept, stored>,
                  {dealt_blocks, dealt_threads, bytes}, n.x.data<T>(), w, b, Deal(n.s), n.eps,
                  reinterpret_cast<double2*>(partial.data<double>()), data_or_null<double>(n.mean),
                  n.rstd.data<Compute<T>>(), n.y.data<T>());
  return true;
}

template <class T, bool centred>
bool backward(const NormalizeBackward& n) {
  constexpr int count = centred ? 2 : 1;
  constexpr int parts = strip / pack_size<T>;
  constexpr int kept = 4 / parts;
  constexpr int stored = 12 / parts;
  constexpr int bytes = HeldPacks<T, 2, kept, stored>::bytes;
  static_assert(bytes >= OwnColumns<T, count>::bytes);
  const T* const w = data_or_null<T>(n.weight);
  const AffineGradients<T, count> gradients(n);
  if (!can_hold(n.s, bytes, n.x.data<T>(), n.dy.data<T>(), w, n.dx.data<T>(), gradients.dweight,
                gradients.dbias))
    return false;
  Tensor partial = empty({n.s.rows, dealt_blocks, 2}, {Dtype::f64, n.x.device()});
  launch_together(n.op, held_backward_kernel<T, count, kept, stored>,
                  {dealt_blocks, dealt_threads, bytes}, n.x.data<T>(), n.dy.data<T>(), w,
                  data_or_null<double>(n.mean), n.rstd.data<Compute<T>>(), Deal(n.s),
                  reinterpret_cast<double2*>(partial.data<double>()), n.dx.data<T>(), gradients);
  return true;
}

}  // namespace

bool normalize_held(const Normalize& n) {
  return try_norm(n, [&]<class T, bool centred>() { return forward<T, centred>(n); });
}

bool normalize_held_backward(const NormalizeBackward& n) {
  return try_norm(n, [&]<class T, bool centred>() { return backward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
