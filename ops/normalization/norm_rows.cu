#include "ebb/ops/normalization/norm_rows.cuh"

#include "ebb/ops/lanes.cuh"

// Rows that fit a group's registers are read once, by a group a row; short ones but in f64.
namespace ebb {
namespace gpu {
namespace {

// What keeps squares of large numbers finite, and its own square times eps a normal number.
template <class C>
constexpr C small_scale = sizeof(C) == 4 ? C(0x1p-48) : C(0x1p-400);

// Of a warp's part of a row.
template <class C>
struct Part {
  C count;
  C mean;
  C square;  // Σ (x − mean)²
};

// Takes the mean of a group's row from its elements v, and finds Σ (x − mean)². Each warp does it
// for its own, and then the block merges them:
// Σ of all = Σ of each + its length · (its mean − mean of all)².
template <class C, int group, int packs, int width, bool centred, class L>
__device__ Part<C> centre(const L& lanes, C (&v)[packs][width]) {
  constexpr int span = group < warp_size ? group : warp_size;  // lanes that shuffle
  constexpr int warps = group / span;
  Part<C> own{static_cast<C>(lanes.cols), 0, 0};
  if constexpr (centred) {
    if constexpr (warps > 1) own.count = static_cast<C>(lanes.of_warp());
    C sum = 0;
    lanes.each([&](int k, int j) { sum += v[k][j]; });
    sum = warp_reduce<span>(sum, Sum{});
    if (own.count > 0) own.mean = sum / own.count;
  }
  lanes.each([&](int k, int j) {
    const C d = v[k][j] - own.mean;
    own.square += d * d;
    if constexpr (warps == 1) v[k][j] = d;
  });
  own.square = warp_reduce<span>(own.square, Sum{});
  if constexpr (warps > 1) {
    __shared__ Part<C> parts[warps];
    if (threadIdx.x % span == 0) parts[threadIdx.x / span] = own;
    __syncthreads();
    own = {static_cast<C>(lanes.cols), 0, 0};
    if constexpr (centred) {
#pragma unroll
      for (int w = 0; w < warps; ++w) own.mean += parts[w].count * parts[w].mean;
      own.mean /= own.count;
    }
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      const C d = parts[w].mean - own.mean;
      own.square += parts[w].square + parts[w].count * d * d;
    }
    if constexpr (centred) lanes.each([&](int k, int j) { v[k][j] -= own.mean; });
  }
  return own;
}

template <class T, int group, int packs, int width, bool centred>
__global__ void __launch_bounds__(block_threads(group, 128))
    forward_kernel(const T* x, const T* weight, const T* bias, std::int64_t rows, int cols,
                   double eps, double* mean, Compute<T>* rstd, T* y) {
  using C = Compute<T>;
  using L = Lanes<T, group, packs, width>;
  const std::int64_t slot =
      static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group;
  const bool inside = slot < rows;
  const std::int64_t row = inside ? slot : 0;
  const L lanes{inside ? cols : 0, static_cast<int>(threadIdx.x % group)};
  // Seen from the row's first element, numbers far from 0 keep their digits.
  const C origin = centred ? widen(x[row * cols]) : C(0);
  C v[packs][width];
  C scale = 1;
  const auto load = [&] {
    typename L::P in[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k) in[k] = lanes.load(x + row * cols, k);
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j) v[k][j] = widen(in[k], j) * scale - origin * scale;
  };
  load();
  Part<C> moments = centre<C, group, packs, width, centred>(lanes, v);
  // Squares of finite numbers may overflow: then the row is made small. Warps do so together.
  if (__any_sync(0xffffffffu, !isfinite(moments.square))) {
    if (!isfinite(moments.square)) scale = small_scale<C>;
    if constexpr (group > warp_size) __syncthreads();
    load();
    moments = centre<C, group, packs, width, centred>(lanes, v);
  }
  const C r = 1 / sqrt(moments.square / static_cast<C>(cols) + scale * scale * static_cast<C>(eps));
  if (inside && lanes.lane == 0) {
    if constexpr (centred)
      mean[row] = static_cast<double>(origin) + static_cast<double>(moments.mean) * (1 / scale);
    rstd[row] = r * scale;
  }
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    if (!lanes.has(k)) continue;
    C w[width];
    C b[width];
    lanes.load(weight, k, 1, w);
    lanes.load(bias, k, 0, b);
#pragma unroll
    for (int j = 0; j < width; ++j) v[k][j] = v[k][j] * r * w[j] + b[j];
    lanes.store(y + row * cols, k, narrow<T>(v[k]));
  }
}

// Packs of a row that a group may hold. Longer rows of f32 and bf16, and such of single elements,
// the row engine has taken before.
template <class T>
constexpr std::int64_t most_packs(bool packed) {
  if (sizeof(T) <= 4) return packed ? 512 : 0;
  return packed ? 4096 : 8192;
}

// go.operator()<group, packs, width>() with the smallest group that holds a row.
template <class T, bool packed, class Go>
void with_group(std::int64_t packs, const Go& go) {
  constexpr int width = packed ? pack_size<T> : 1;
  if constexpr (packed) {
    if (packs <= 8) return go.template operator()<8, 1, width>();
    if (packs <= 32) return go.template operator()<32, 1, width>();
    if (packs <= 128) return go.template operator()<32, 4, width>();
    if (packs <= 256) return go.template operator()<64, 4, width>();
    if (packs <= 512) return go.template operator()<128, 4, width>();
  }
  if constexpr (packed && sizeof(T) == 8) {
    if (packs <= 1024) return go.template operator()<256, 4, width>();
    if (packs <= 2048) return go.template operator()<512, 4, width>();
    go.template operator()<512, 8, width>();
  } else if constexpr (sizeof(T) == 8) {
    if (packs <= 256) return go.template operator()<32, 8, 1>();
    if (packs <= 2048) return go.template operator()<128, 16, 1>();
    go.template operator()<512, 16, 1>();
  }
}

template <class T, bool centred>
void forward(const Normalize& n) {
  if (normalize_spread(n) || normalize_by_row(n)) return;
  const T* w = data_or_null<T>(n.weight);
  const T* b = data_or_null<T>(n.bias);
  const bool packed =
      n.s.cols % pack_size<T> == 0 && all_aligned(n.x.data<T>(), w, b, n.y.data<T>());
  const std::int64_t packs = packed ? n.s.cols / pack_size<T> : n.s.cols;
  if (packs > most_packs<T>(packed) || few(n.s)) return normalize_slices(n);
  const auto go = [&]<int group, int each, int width>() {
    constexpr int threads = block_threads(group, 128);
    const std::int64_t blocks = divide_up<std::int64_t>(n.s.rows, threads / group);
    launch(n.op, forward_kernel<T, group, each, width, centred>,
           dim3(static_cast<unsigned>(blocks)), threads, 0, n.x.data<T>(), w, b, n.s.rows, n.s.cols,
           n.eps, data_or_null<double>(n.mean), n.rstd.data<Compute<T>>(), n.y.data<T>());
  };
  packed ? with_group<T, true>(packs, go) : with_group<T, false>(packs, go);
}

}  // namespace
}  // namespace gpu

void gpu::normalize_rows(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                         const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  if (x.numel() == 0) return;
  const Normalize n{op, x, s, weight, bias, eps, mean, rstd, y};
  with_norm<float, double, bf16>(n, [&]<class T, bool centred>() { forward<T, centred>(n); });
}

}  // namespace ebb
