#include "ebb/ops/channels.cuh"
#include "ebb/ops/normalization/norm_rows.cuh"

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

// What a row's gradient needs to know of the row.
template <class C>
struct RowGradient {
  Hat<C> hat;
  C r;
  C a;  // mean of g
  C b;  // mean of g x̂
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
        const C h = k.hat(widen(in[u], j));
        out[j] = k.r * (rounded_product(d, w[j]) - k.a - h * k.b);
        sum[0][j] += d * h;
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
void forward(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
             const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  using C = Compute<T>;
  const T* const from = x.data<T>();
  double* const means = data_or_null<double>(mean);
  C* const r = rstd.data<C>();
  if constexpr (centred)
    channel_sums<T, 2, 0>(op, MomentsFromFirst<T>{from, s.cols},
                          KeepMoments<T>{from, s.cols, eps, means, r}, 1, s.rows, s.cols,
                          x.device(), from);
  else
    channel_sums<T, 1, 0>(op, RowSquares<C>{}, KeepSquares<C>{static_cast<double>(s.cols), eps, r},
                          1, s.rows, s.cols, x.device(), from);
  const T* const w = data_or_null<T>(weight);
  channel_map<T, 2>(op, ApplyRow<C>{w != nullptr, means, r}, 1, s.rows, s.cols, y.data<T>(), from,
                    w, data_or_null<T>(bias));
}

template <class T, bool centred>
void backward(const char* op, const Tensor& x, const Tensor& dy, const NormRows& s,
              const Tensor& weight, const Tensor& mean, const Tensor& rstd, Tensor& dx,
              Tensor& dweight, Tensor& dbias) {
  using C = Compute<T>;
  constexpr int count = centred ? 2 : 1;
  const AffineGradients<T, count> finish{data_or_null<T>(dweight), data_or_null<T>(dbias)};
  const T* const w = data_or_null<T>(weight);
  const double* const means = data_or_null<double>(mean);
  const C* const r = rstd.data<C>();
  static_assert(sizeof(RowGradient<C>) == 6 * sizeof(C));
  Tensor constants = empty({s.rows, 6}, rstd.options());
  auto* const of = reinterpret_cast<RowGradient<C>*>(constants.data<C>());
  const RowSums<C> terms{w != nullptr, means, r};
  const KeepSums<C> keep{static_cast<double>(s.cols), means, r, of};
  channel_sums<T, 2, 1>(op, terms, keep, 1, s.rows, s.cols, x.device(), x.data<T>(), dy.data<T>(),
                        w);
  const bool sums = finish.dweight || finish.dbias;
  with_width<T>(
      s.cols,
      [&]<int width>() {
        const std::int64_t chunk = rows_of_part(s, width);
        const std::int64_t parts = divide_up(s.rows, chunk);
        const bool in_parts = sums && (parts > 1 || s.rows > gradient_window);
        Tensor partial = in_parts ? empty({count, parts, s.cols}, rstd.options()) : Tensor();
        C* const to = data_or_null<C>(partial);
        const std::int64_t tiles = divide_up<std::int64_t>(s.cols, gradient_threads * width);
        launch(op, gradient_kernel<T, count, width>,
               dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)), gradient_threads,
               0, x.data<T>(), dy.data<T>(), w, of, s.rows, s.cols, chunk, dx.data<T>(), finish,
               to);
        if (!in_parts) return;
        add_parts(op, to, parts, s.cols, finish, x.device());
      },
      x.data<T>(), dy.data<T>(), w, static_cast<const T*>(dx.data<T>()),
      static_cast<const T*>(finish.dweight), static_cast<const T*>(finish.dbias));
}

}  // namespace
}  // namespace gpu

void gpu::normalize_slices(const char* op, const Tensor& x, const NormRows& s, const Tensor& weight,
                           const Tensor& bias, double eps, Tensor& mean, Tensor& rstd, Tensor& y) {
  if (normalize_held(op, x, s, weight, bias, eps, mean, rstd, y)) return;
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    (mean.defined() ? forward<T, true> : forward<T, false>)(op, x, s, weight, bias, eps, mean, rstd,
                                                            y);
  });
}

void gpu::normalize_slices_backward(const char* op, const Tensor& x, const Tensor& dy,
                                    const NormRows& s, const Tensor& weight, const Tensor& mean,
                                    const Tensor& rstd, Tensor& dx, Tensor& dweight,
                                    Tensor& dbias) {
  if (normalize_held_backward(op, x, dy, s, weight, mean, rstd, dx, dweight, dbias)) return;
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    (mean.defined() ? backward<T, true> : backward<T, false>)(op, x, dy, s, weight, mean, rstd, dx,
                                                              dweight, dbias);
  });
}

}  // namespace ebb
