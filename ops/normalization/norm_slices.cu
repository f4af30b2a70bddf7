#include "ebb/ops/channels.cuh"
#include "ebb/ops/normalization/norm_backward.cuh"

// Rows as the channels of one sample: slices of them are reduced by a block each, and read again
// when their sums are known. In the backward pass blocks of that second read own columns, so that
// they find dw and db beside dx.
namespace ebb {
namespace gpu {
namespace {

template <class T>
struct KeepMoments {
  const T* x;
  std::int64_t cols;
  double eps;
  double* mean;
  Compute<T>* rstd;
  __device__ void operator()(std::int64_t row, const double (&sum)[2]) const {
    const double n = static_cast<double>(cols);
    const double off = sum[0] / n;
    const double square = sum[1] - off * sum[0];
    mean[row] = static_cast<double>(widen(x[row * cols])) + off;
    rstd[row] = static_cast<Compute<T>>(1 / sqrt((square < 0 ? 0 : square) / n + eps));
  }
};

template <class C>
struct RowSquares {
  struct Column {
    template <class Rows>
    __device__ void add(const Rows& rows, double (&sum)[1]) const {
      C window = 0;
      rows.each([&](C x) { window += x * x; });
      sum[0] += static_cast<double>(window);
    }
  };
  __device__ Column column(std::int64_t) const { return {}; }
};

template <class C>
struct KeepSquares {
  double n;
  double eps;
  C* rstd;
  __device__ void operator()(std::int64_t row, const double (&sum)[1]) const {
    rstd[row] = static_cast<C>(1 / sqrt(sum[0] / n + eps));
  }
};

template <class C>
struct ApplyRow {
  struct Channel {
    Hat<C> hat;
    bool weighted;
    __device__ C operator()(C x, C w, C b) const { return hat(x) * (weighted ? w : C(1)) + b; }
  };
  bool weighted;
  const double* mean;  // or null
  const C* rstd;
  __device__ Channel channel(std::int64_t row) const {
    return {Hat<C>(mean ? mean[row] : 0.0, rstd[row]), weighted};
  }
};

// Σ g and Σ g x̂
template <class C>
struct RowSums {
  struct Column {
    Hat<C> hat;
    bool weighted;
    template <class Rows>
    __device__ void add(const Rows& rows, double (&sum)[2]) const {
      C a = 0;
      C b = 0;
      rows.each([&](C x, C dy, C w) {
        const C g = weighted ? rounded_product(dy, w) : dy;
        a += g;
        b += g * hat(x);
      });
      sum[0] += static_cast<double>(a);
      sum[1] += static_cast<double>(b);
    }
  };
  bool weighted;
  const double* mean;  // or null
  const C* rstd;
  __device__ Column column(std::int64_t row) const {
    return {Hat<C>(mean ? mean[row] : 0.0, rstd[row]), weighted};
  }
};

template <class C>
struct KeepSums {
  double n;
  const double* mean;  // or null
  const C* rstd;
  RowGradient<C>* rows;
  __device__ void operator()(std::int64_t row, const double (&sum)[2]) const {
    rows[row] = {Hat<C>(mean ? mean[row] : 0.0, rstd[row]), rstd[row],
                 static_cast<C>(mean ? sum[0] / n : 0.0), static_cast<C>(sum[1] / n)};
  }
};

constexpr int gradient_threads = 256;
constexpr int gradient_window = 64;  // rows added up before they join the earlier ones

// A thread owns a pack of columns and walks `chunk` rows. Parts of dw and db go to `partial`,
// [count][parts][cols]; when it is null, they are all, and asked for or not.
template <class T, int count, int width>
__global__ void __launch_bounds__(gradient_threads)
    gradient_kernel(const T* x, const T* dy, const T* weight, const RowGradient<Compute<T>>* of,
                    std::int64_t rows, std::int64_t cols, std::int64_t chunk, T* dx,
                    AffineGradients<T, count> finish, Compute<T>* partial) {
  using C = Compute<T>;
  using P = Pack<T, width>;
  constexpr int most = 4;  // rows in flight
  const std::int64_t column =
      (static_cast<std::int64_t>(blockIdx.x) * gradient_threads + threadIdx.x) * width;
  if (column >= cols) return;
  C w[width];
#pragma unroll
  for (int j = 0; j < width; ++j) w[j] = weight ? widen(weight[column + j]) : C(1);
  C sum[count][width] = {};
  const std::int64_t first = blockIdx.y * chunk;
  const std::int64_t end = rows < first + chunk ? rows : first + chunk;
  for (std::int64_t row = first; row < end; row += most) {
    P in[most];
    P up[most];
#pragma unroll
    for (int u = 0; u < most; ++u) {
      in[u] = load_if<width>(row + u < end, x + (row + u) * cols + column);
      up[u] = load_if<width>(row + u < end, dy + (row + u) * cols + column);
    }
#pragma unroll
    for (int u = 0; u < most; ++u) {
      if (row + u >= end) continue;
      const RowGradient<C> k = of[row + u];
      C out[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const C d = widen(up[u], j);
        const C x = widen(in[u], j);
        out[j] = k(rounded_product(d, w[j]), x);
        sum[0][j] += d * k.hat(x);
        if constexpr (count == 2) sum[1][j] += d;
      }
      *reinterpret_cast<P*>(dx + (row + u) * cols + column) = narrow<T>(out);
    }
    const std::int64_t done = row + most - first;
    if (!partial || (done % gradient_window != 0 && row + most < end)) continue;
#pragma unroll
    for (int q = 0; q < count; ++q)
#pragma unroll
      for (int j = 0; j < width; ++j) {
        C& to = partial[(q * gridDim.y + blockIdx.y) * cols + column + j];
        to = done <= gradient_window ? sum[q][j] : to + sum[q][j];
        sum[q][j] = 0;
      }
  }
  T* const to[] = {finish.dweight, finish.dbias};
#pragma unroll
  for (int q = 0; q < count; ++q) {
    if (partial || !to[q]) continue;
    *reinterpret_cast<P*>(to[q] + column) = narrow<T>(sum[q]);
  }
}

// Of all rows, or of parts of them when there are too few columns to fill a GPU.
std::int64_t rows_of_part(const NormRows& s, int width) {
  const std::int64_t tiles = divide_up<std::int64_t>(s.cols, gradient_threads * width);
  const std::int64_t parts = divide_up<std::int64_t>(1024, tiles);
  return divide_up<std::int64_t>(divide_up(s.rows, parts), 8) * 8;
}

template <class T, bool centred>
void forward(const Normalize& n) {
  using C = Compute<T>;
  const T* const from = n.x.data<T>();
  double* const means = data_or_null<double>(n.mean);
  C* const r = n.rstd.data<C>();
  if constexpr (centred)
    channel_sums<T, 2, 0>(n.op, MomentsFromFirst<T>{from, n.s.cols},
                          KeepMoments<T>{from, n.s.cols, n.eps, means, r}, 1, n.s.rows, n.s.cols,
                          n.x.device(), from);
  else
    channel_sums<T, 1, 0>(n.op, RowSquares<C>{},
                          KeepSquares<C>{static_cast<double>(n.s.cols), n.eps, r}, 1, n.s.rows,
                          n.s.cols, n.x.device(), from);
  const T* const w = data_or_null<T>(n.weight);
  channel_map<T, 2>(n.op, ApplyRow<C>{w != nullptr, means, r}, 1, n.s.rows, n.s.cols, n.y.data<T>(),
                    from, w, data_or_null<T>(n.bias));
}

template <class T, bool centred>
void backward(const NormalizeBackward& n) {
  using C = Compute<T>;
  constexpr int count = centred ? 2 : 1;
  const AffineGradients<T, count> finish(n);
  const T* const w = data_or_null<T>(n.weight);
  const double* const means = data_or_null<double>(n.mean);
  const C* const r = n.rstd.data<C>();
  static_assert(sizeof(RowGradient<C>) == 6 * sizeof(C));
  Tensor constants = empty({n.s.rows, 6}, n.rstd.options());
  auto* const of = reinterpret_cast<RowGradient<C>*>(constants.data<C>());
  const RowSums<C> terms{w != nullptr, means, r};
  const KeepSums<C> keep{static_cast<double>(n.s.cols), means, r, of};
  channel_sums<T, 2, 1>(n.op, terms, keep, 1, n.s.rows, n.s.cols, n.x.device(), n.x.data<T>(),
                        n.dy.data<T>(), w);
  with_width<T>(n.s.cols, [&]<int width>() {
    const std::int64_t chunk = rows_of_part(n.s, width);
    const std::int64_t parts = divide_up(n.s.rows, chunk);
    const bool in_parts = parts > 1 || n.s.rows > gradient_window;
    ParameterSums<T, count> sums(n, in_parts ? parts : 0);
    const std::int64_t tiles = divide_up<std::int64_t>(n.s.cols, gradient_threads * width);
    launch(n.op, gradient_kernel<T, count, width>,
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)), gradient_threads, 0,
           n.x.data<T>(), n.dy.data<T>(), w, of, n.s.rows, n.s.cols, chunk, n.dx.data<T>(), finish,
           sums.data());
    sums.add_up();
  });
}

}  // namespace

void normalize_slices(const Normalize& n) {
  with_norm<float, double, bf16>(n, [&]<class T, bool centred>() { forward<T, centred>(n); });
}

void normalize_slices_backward(const NormalizeBackward& n) {
  with_norm<float, double, bf16>(n, [&]<class T, bool centred>() { backward<T, centred>(n); });
}

}  // namespace gpu
}  // namespace ebb
