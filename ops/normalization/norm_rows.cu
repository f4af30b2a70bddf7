#include "ebb/ops/normalization/norm_rows.h"

#include "ebb/ops/columns.cuh"
#include "ebb/ops/lanes.cuh"
#include "ebb/ops/rows.cuh"

// Rows that fit a group's registers are read once: forward by a group a row, backward by a fixed
// number of groups that each walk many rows and keep the columns' sums, dw and db, in registers
// too; a second stage adds what the groups found. Rows that are wider, or so few that they would
// not fill the GPU, are cut into slices, whose sums are merged between two reads.
namespace ebb {
namespace gpu {
namespace {

// a · b rounded on its own. Fused into the subtraction that follows, dy · w − mean(dy · w) would
// leave the product's rounding error where the difference is exactly 0, times a large rstd.
__device__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// Packs of a row in registers: in the forward pass, and in the backward pass, where a pack's sums
// take 8 registers, or 16 for bf16.
constexpr std::int64_t most_packs = 4096;
template <class T>
constexpr std::int64_t most_packs_backward = sizeof(T) == 2 ? 1024 : 2048;

// μ as the nearest C and what that leaves of it, so that x − μ is right far from 0. All by half:
// x − μ of finite numbers may overflow, and times an rstd of 0 be NaN; (x − μ)/2 may not.
template <class C>
struct Centre {
  C high;
  C low;
  __device__ explicit Centre(double mean)
      : high(static_cast<C>(mean) / 2), low(static_cast<C>(mean / 2 - static_cast<double>(high))) {}
  __device__ C half_from(C x) const { return (C(0.5) * x - high) - low; }
};

// What keeps sums of the largest numbers finite, and its square times eps a normal number.
template <class C>
constexpr C small_scale = sizeof(C) == 4 ? C(0x1p-48) : C(0x1p-400);

constexpr int block_threads(int group) { return group < 64 ? 128 : group; }

template <class T, int group, int packs, bool centred>
__global__ void __launch_bounds__(block_threads(group))
    forward_kernel(const T* x, const T* weight, const T* bias, std::int64_t rows, int cols,
                   bool packed, double eps, double* mean, Compute<T>* rstd, T* y) {
  using C = Compute<T>;
  using L = Lanes<T, group, packs>;
  const std::int64_t slot =
      static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group;
  const bool inside = slot < rows;
  const std::int64_t row = inside ? slot : 0;
  const L lanes{inside ? cols : 0, static_cast<int>(threadIdx.x % group), packed};
  typename L::P in[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) in[k] = lanes.load(x + row * cols, k);
  const auto value = [&](int k, int j) { return widen(in[k].v[j]); };
  const C n = static_cast<C>(cols);
  C high = 0;
  C low = 0;
  C scale = 1;
  if constexpr (centred) {
    const auto find_mean = [&] {
      high = lanes.sum(value) / n;
      low = lanes.sum([&](int k, int j) { return value(k, j) - high; }) / n;
    };
    find_mean();
    // Sums of finite numbers may overflow: then the row is made small. Warps do so together.
    if (__any_sync(0xffffffffu, !isfinite(low))) {
      if (!isfinite(low)) scale = small_scale<C>;
#pragma unroll
      for (int k = 0; k < packs; ++k)
#pragma unroll
        for (int j = 0; j < L::width; ++j) in[k].v[j] = narrow<T>(value(k, j) * scale);
      find_mean();
    }
  }
  const C square = lanes.sum([&](int k, int j) {
    const C d = (value(k, j) - high) - low;
    return d * d;
  });
  const C r = 1 / sqrt(square / n + scale * scale * static_cast<C>(eps));
  if (inside && lanes.lane == 0) {
    if constexpr (centred)
      mean[row] = (static_cast<double>(high) + static_cast<double>(low)) * (1 / scale);
    rstd[row] = r * scale;
  }
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const typename L::P w = lanes.load(weight, k, 1);
    const typename L::P b = lanes.load(bias, k, 0);
    typename L::P out;
#pragma unroll
    for (int j = 0; j < L::width; ++j)
      out.v[j] = narrow<T>(((value(k, j) - high) - low) * r * widen(w.v[j]) + widen(b.v[j]));
    lanes.store(y + row * cols, k, out);
  }
}

// Where a group leaves its sums of dw and db: [2 or 1][groups][cols], null when nobody asks.
template <class C>
struct Partials {
  C* sums;
  std::int64_t groups;
};

// 512 threads a multiprocessor, and at most 128 registers each.
template <class T, int group, int packs, bool centred>
__global__ void __launch_bounds__(block_threads(group), 512 / block_threads(group))
    backward_kernel(const T* x, const T* dy, const T* weight, const double* mean,
                    const Compute<T>* rstd, std::int64_t rows, int cols, bool packed, T* dx,
                    Partials<Compute<T>> partials) {
  using C = Compute<T>;
  using L = Lanes<T, group, packs>;
  constexpr int width = L::width;
  constexpr int window = 64;  // rows added up before they join the earlier ones
  const L lanes{cols, static_cast<int>(threadIdx.x % group), packed};
  const std::int64_t worker =
      static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group;
  C dw[packs][width] = {};
  C db[centred ? packs : 1][width] = {};
  bool first = true;
  const auto flush = [&] {
    if (!partials.sums || worker >= partials.groups) return;
    C* const to = partials.sums + worker * cols;
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j) {
        if (!lanes.has(k, j)) continue;
        const int c = lanes.at(k, j);
        to[c] = first ? dw[k][j] : to[c] + dw[k][j];
        dw[k][j] = 0;
        if constexpr (centred) {
          C* const beside = to + partials.groups * cols;
          beside[c] = first ? db[k][j] : beside[c] + db[k][j];
          db[k][j] = 0;
        }
      }
    first = false;
  };
  int waiting = 0;
  // All groups of a warp take part in every step of its reductions, so they leave together.
  const std::int64_t rounds = divide_up(rows, partials.groups);
  for (std::int64_t round = 0; round < rounds; ++round) {
    const std::int64_t at = round * partials.groups + worker;
    const bool inside = worker < partials.groups && at < rows;
    const std::int64_t row = inside ? at : 0;
    typename L::P in[packs];
    typename L::P up[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      in[k] = lanes.load(x + row * cols, k);
      up[k] = lanes.load(dy + row * cols, k);
    }
    const C r = rstd[row];
    const Centre<C> centre(centred ? mean[row] : 0.0);
    const auto hat = [&](int k, int j) { return centre.half_from(widen(in[k].v[j])) * (2 * r); };
    C a = 0;
    C b = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const typename L::P w = lanes.load(weight, k, 1);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        if (!inside || !lanes.has(k, j)) continue;
        const C d = widen(up[k].v[j]);
        const C h = hat(k, j);
        const C g = rounded_product(d, widen(w.v[j]));
        if constexpr (centred) a += g;
        b += g * h;
        dw[k][j] += d * h;
        if constexpr (centred) db[k][j] += d;
      }
    }
    const C n = static_cast<C>(cols);
    if constexpr (centred) a = lanes.reduce(a) / n;
    b = lanes.reduce(b) / n;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const typename L::P w = lanes.load(weight, k, 1);
      typename L::P out;
#pragma unroll
      for (int j = 0; j < width; ++j)
        out.v[j] =
            narrow<T>(r * (rounded_product(widen(up[k].v[j]), widen(w.v[j])) - a - hat(k, j) * b));
      if (inside) lanes.store(dx + row * cols, k, out);
    }
    if (++waiting == window) {
      flush();
      waiting = 0;
    }
  }
  if (waiting > 0 || first) flush();
}

// The groups' sums, added by columns.
template <class C, int count>
struct PartialTerms {
  const C* partial;
  std::int64_t stride;
  __device__ void operator()(std::int64_t i, std::int64_t, C (&term)[count]) const {
#pragma unroll
    for (int q = 0; q < count; ++q) term[q] = partial[q * stride + i];
  }
};

template <class T, int count>
struct AffineGradients {
  T* dweight;  // or null
  T* dbias;    // or null
  __device__ void operator()(std::int64_t c, const double (&sum)[count]) const {
    using C = Compute<T>;
    if (dweight) dweight[c] = narrow<T>(static_cast<C>(sum[0]));
    if constexpr (count == 2)
      if (dbias) dbias[c] = narrow<T>(static_cast<C>(sum[1]));
  }
};

// The slices of rows that are wide or few: what the row engine calls a row is one of them.
RowLayout sliced(const NormRows& s, std::int64_t width) {
  constexpr std::int64_t slices = 1024;  // that fill every GPU, together
  const std::int64_t packs = divide_up(s.cols, width);
  const std::int64_t wanted = divide_up(packs, divide_up(slices, s.rows));
  const std::int64_t chunk = (wanted < 512 ? 512 : wanted < 2048 ? wanted : 2048) * width;
  return {s.rows, s.cols, divide_up(s.cols, chunk), chunk};
}

bool few(const NormRows& s, std::int64_t width) { return s.rows < 128 && s.cols > 1024 * width; }

// A row of the engine above, which is a slice of a real one.
struct Slice {
  std::int64_t slices;
  std::int64_t chunk;
  std::int64_t cols;

  __device__ std::int64_t row(std::int64_t index) const { return index / slices; }
  __device__ std::int64_t first(std::int64_t index) const { return index % slices * chunk; }
  __device__ std::int64_t count(std::int64_t index) const {
    const std::int64_t rest = cols - first(index);
    return rest < chunk ? rest : chunk;
  }
};

// Mean and Σ (x − mean)² of a slice; about 0 when not centred.
template <class T, bool centred>
struct SliceMoments {
  using C = Compute<T>;
  Slice slice;
  double* mean;
  double* square;

  template <class Row>
  __device__ void operator()(Row& row) const {
    double m = 0;
    if constexpr (centred)
      m = row.template sum<double>([](auto, C x) { return x * C(window_scale); }) / window_scale /
          static_cast<double>(slice.count(row.index()));
    const Centre<C> centre(m);
    const double total = row.template sum<double>([=](auto, C x) {
      const C d = centre.half_from(x);
      return d * d;
    });
    if (!row.leader()) return;
    mean[row.index()] = m;
    square[row.index()] = 4 * total;
  }
};

// Σ of all = Σ of each + its length · (its mean − mean of all)²
template <class C, bool centred>
struct MergeMoments {
  Slice slice;
  double eps;
  double* mean;
  C* rstd;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double n = static_cast<double>(slice.cols);
    const auto length = [&](auto k) { return static_cast<double>(slice.count(k)); };
    double m = 0;
    if constexpr (centred)
      m = row.template sum<double>([=](auto k, double mean, double) { return length(k) * mean; }) /
          n;
    const double square = row.template sum<double>([=](auto k, double mean, double square) {
      return centred ? square + length(k) * (mean - m) * (mean - m) : square;
    });
    if (!row.leader()) return;
    if constexpr (centred) mean[row.index()] = m;
    rstd[row.index()] = static_cast<C>(1 / sqrt(square / n + eps));
  }
};

template <class T, bool centred>
struct ApplySlice {
  using C = Compute<T>;
  Slice slice;
  const T* weight;  // or null
  const T* bias;    // or null
  const double* mean;
  const C* rstd;
  T* y;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t i = slice.row(row.index());
    const std::int64_t first = slice.first(row.index());
    const Centre<C> centre(centred ? mean[i] : 0.0);
    const C r = rstd[i];
    row.write(y, [&](auto c, C x) {
      const C w = weight ? widen(weight[first + c]) : C(1);
      return centre.half_from(x) * (2 * r) * w + (bias ? widen(bias[first + c]) : C(0));
    });
  }
};

// Σ g and Σ g x̂ of a slice.
template <class T, bool centred>
struct SliceSums {
  using C = Compute<T>;
  Slice slice;
  const T* weight;  // or null
  const double* mean;
  const C* rstd;
  double* a;
  double* b;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t i = slice.row(row.index());
    const std::int64_t first = slice.first(row.index());
    const Centre<C> centre(centred ? mean[i] : 0.0);
    const C r = rstd[i];
    const auto g = [&](auto c, C dy) {
      return weight ? rounded_product(dy, widen(weight[first + c])) : dy;
    };
    const double one = row.template sum<double>([&](auto c, C, C dy) { return g(c, dy); });
    const double two = row.template sum<double>(
        [&](auto c, C x, C dy) { return g(c, dy) * (centre.half_from(x) * (2 * r)); });
    if (!row.leader()) return;
    a[row.index()] = centred ? one : 0.0;
    b[row.index()] = two;
  }
};

// Their means over the rows, [2][rows].
template <class C>
struct MergeSums {
  Slice slice;
  std::int64_t rows;
  C* means;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const double n = static_cast<double>(slice.cols);
    const double a = row.template sum<double>([](auto, double a, double) { return a; });
    const double b = row.template sum<double>([](auto, double, double b) { return b; });
    if (!row.leader()) return;
    means[row.index()] = static_cast<C>(a / n);
    means[rows + row.index()] = static_cast<C>(b / n);
  }
};

template <class T, bool centred>
struct SliceGradient {
  using C = Compute<T>;
  Slice slice;
  std::int64_t rows;
  const T* weight;  // or null
  const double* mean;
  const C* rstd;
  const C* means;
  T* dx;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t i = slice.row(row.index());
    const std::int64_t first = slice.first(row.index());
    const Centre<C> centre(centred ? mean[i] : 0.0);
    const C r = rstd[i];
    const C a = means[i];
    const C b = means[rows + i];
    row.write(dx, [&](auto c, C x, C dy) {
      const C g = weight ? rounded_product(dy, widen(weight[first + c])) : dy;
      return r * (g - a - centre.half_from(x) * (2 * r) * b);
    });
  }
};

// dy x̂ and dy of an element.
template <class T, int count>
struct AffineTerms {
  using C = Compute<T>;
  const T* x;
  const T* dy;
  const double* mean;
  const C* rstd;
  std::int64_t cols;
  __device__ void operator()(std::int64_t i, std::int64_t, C (&term)[count]) const {
    const std::int64_t row = i / cols;
    const Centre<C> centre(count == 2 ? mean[row] : 0.0);
    const C d = widen(dy[i]);
    term[0] = d * (centre.half_from(widen(x[i])) * (2 * rstd[row]));
    if constexpr (count == 2) term[1] = d;
  }
};

template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}
template <class T>
T* data_or_null(Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}

template <class... P>
bool all_aligned(const P*... p) {
  return ((reinterpret_cast<std::uintptr_t>(p) % 16 == 0) && ...);
}

// go.operator()<group, packs>() with the smallest pair that holds a row of `packs`.
template <class T, class Go>
void with_group(std::int64_t packs, const Go& go) {
  if (packs <= 8) return go.template operator()<8, 1>();
  if (packs <= 32) return go.template operator()<32, 1>();
  if constexpr (sizeof(T) == 2) {
    if (packs <= 128) return go.template operator()<64, 2>();
    if (packs <= 256) return go.template operator()<128, 2>();
    if (packs <= 512) return go.template operator()<256, 2>();
    go.template operator()<512, 2>();
  } else {
    if (packs <= 96) return go.template operator()<32, 3>();
    if (packs <= 192) return go.template operator()<64, 3>();
    if (packs <= 512) return go.template operator()<128, 4>();
    if (packs <= 1024) return go.template operator()<256, 4>();
    go.template operator()<512, 4>();
  }
}

// A slice in a block's registers.
template <class T, class Body, class... X>
void keep_slices(const char* op, const Body& body, const RowLayout& layout, const X*... x) {
  if (layout.chunk <= 512 * pack_size<T>)
    return launch_rows<T, 128, 4, true>(op, body, layout, nullptr, x...);
  launch_rows<T, 256, 8, true>(op, body, layout, nullptr, x...);
}

template <class T, bool centred>
void forward_slices(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                    const Tensor& bias, double eps, double* mean, Tensor& rstd, Tensor& y) {
  using C = Compute<T>;
  const RowLayout layout = sliced(s, pack_size<T>);
  const Slice slice{layout.slices, layout.chunk, s.cols};
  Tensor partial = empty({2, s.rows, layout.slices}, {Dtype::f64, x.device()});
  double* means = partial.data<double>();
  double* squares = means + s.rows * layout.slices;
  keep_slices<T>(op, SliceMoments<T, centred>{slice, means, squares}, layout, x.data<T>());
  stream_rows<double>(op, MergeMoments<C, centred>{slice, eps, mean, rstd.data<C>()},
                      {s.rows, layout.slices}, nullptr, static_cast<const double*>(means),
                      static_cast<const double*>(squares));
  const ApplySlice<T, centred> apply{slice, data_or_null<T>(weight), data_or_null<T>(bias),
                                     mean,  rstd.data<C>(),          y.data<T>()};
  stream_rows<T>(op, apply, layout, y.data<T>(), x.data<T>());
}

template <class T, bool centred>
void forward(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
             const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  constexpr std::int64_t width = pack_size<T>;
  double* means = data_or_null<double>(mean);
  const std::int64_t packs = divide_up(s.cols, width);
  if (packs > most_packs || few(s, width))
    return forward_slices<T, centred>(op, x, s, weight, bias, eps, means, rstd, y);
  const T* w = data_or_null<T>(weight);
  const T* b = data_or_null<T>(bias);
  const bool packed = s.cols % width == 0 && all_aligned(x.data<T>(), w, b, y.data<T>());
  const auto go = [&]<int group, int per_thread>() {
    constexpr int threads = block_threads(group);
    const std::int64_t blocks = divide_up<std::int64_t>(s.rows, threads / group);
    launch(op, forward_kernel<T, group, per_thread, centred>, dim3(static_cast<unsigned>(blocks)),
           threads, 0, x.data<T>(), w, b, s.rows, s.cols, packed, eps, means,
           rstd.data<Compute<T>>(), y.data<T>());
  };
  if (packs > most_packs_backward<T>) return go.template operator()<512, 8>();
  with_group<T>(packs, go);
}

template <class T, bool centred>
void backward_slices(const char* op, const Tensor& x, const Tensor& dy, const NormRows& s,
                     const Tensor& weight, const double* mean, const Tensor& rstd, Tensor& dx,
                     const AffineGradients<T, centred ? 2 : 1>& finish) {
  using C = Compute<T>;
  const T* w = data_or_null<T>(weight);
  const C* r = rstd.data<C>();
  const RowLayout layout = sliced(s, pack_size<T>);
  const Slice slice{layout.slices, layout.chunk, s.cols};
  Tensor partial = empty({2, s.rows, layout.slices}, {Dtype::f64, x.device()});
  Tensor means = empty({2, s.rows}, rstd.options());
  double* a = partial.data<double>();
  double* b = a + s.rows * layout.slices;
  keep_slices<T>(op, SliceSums<T, centred>{slice, w, mean, r, a, b}, layout, x.data<T>(),
                 dy.data<T>());
  stream_rows<double>(op, MergeSums<C>{slice, s.rows, means.data<C>()}, {s.rows, layout.slices},
                      nullptr, static_cast<const double*>(a), static_cast<const double*>(b));
  const SliceGradient<T, centred> gradient{slice, s.rows,          w,           mean,
                                           r,     means.data<C>(), dx.data<T>()};
  stream_rows<T>(op, gradient, layout, dx.data<T>(), x.data<T>(), dy.data<T>());
  if (!finish.dweight && !finish.dbias) return;
  constexpr int count = centred ? 2 : 1;
  columns<C, count>(op, AffineTerms<T, count>{x.data<T>(), dy.data<T>(), mean, r, s.cols}, finish,
                    1, s.rows, s.cols, x.device());
}

template <class T, bool centred>
void backward(const char* op, const Tensor& x, const Tensor& dy, const NormRows& s,
              const Tensor& weight, const Tensor& mean, const Tensor& rstd, Tensor& dx,
              Tensor& dweight, Tensor& dbias) {
  using C = Compute<T>;
  constexpr int count = centred ? 2 : 1;
  constexpr std::int64_t width = pack_size<T>;
  const double* means = data_or_null<double>(mean);
  const AffineGradients<T, count> finish{data_or_null<T>(dweight), data_or_null<T>(dbias)};
  const std::int64_t packs = divide_up(s.cols, width);
  if (packs > most_packs_backward<T> || few(s, width))
    return backward_slices<T, centred>(op, x, dy, s, weight, means, rstd, dx, finish);
  const T* w = data_or_null<T>(weight);
  const bool packed =
      s.cols % width == 0 && all_aligned(x.data<T>(), dy.data<T>(), w, dx.data<T>());
  with_group<T>(packs, [&]<int group, int per_thread>() {
    constexpr int threads = block_threads(group);
    // One wave on 132 multiprocessors; the same on every GPU, so that all add in one order.
    constexpr std::int64_t most = 132 * 512 / group;
    const std::int64_t groups = s.rows < most ? s.rows : most;
    const bool sums = finish.dweight || finish.dbias;
    Tensor partial = sums ? empty({count, groups, s.cols}, rstd.options()) : Tensor();
    C* const to = data_or_null<C>(partial);
    const std::int64_t blocks = divide_up<std::int64_t>(groups, threads / group);
    launch(op, backward_kernel<T, group, per_thread, centred>, dim3(static_cast<unsigned>(blocks)),
           threads, 0, x.data<T>(), dy.data<T>(), w, means, rstd.data<C>(), s.rows, s.cols, packed,
           dx.data<T>(), Partials<C>{to, groups});
    if (!sums) return;
    columns<C, count>(op, PartialTerms<C, count>{to, groups * s.cols}, finish, 1, groups, s.cols,
                      x.device());
  });
}

}  // namespace
}  // namespace gpu

void gpu::normalize_rows(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                         const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  if (x.numel() == 0) return;
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    (mean.defined() ? forward<T, true> : forward<T, false>)(op, x, s, weight, bias, eps, mean, rstd,
                                                            y);
  });
}

void gpu::normalize_rows_backward(const char* op, const Tensor& x, const Tensor& dy,
                                  const NormRows& s, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  if (x.numel() == 0) {  // without a row, sums are 0
    if (dweight.defined()) dweight.fill_(0);
    if (dbias.defined()) dbias.fill_(0);
    return;
  }
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    (mean.defined() ? backward<T, true> : backward<T, false>)(op, x, dy, s, weight, mean, rstd, dx,
                                                              dweight, dbias);
  });
}

}  // namespace ebb
