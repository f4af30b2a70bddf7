#include "ebb/ops/reduction/cross_entropy.h"
#include "ebb/ops/reduction/softmax.cuh"
#include "ebb/ops/slices.cuh"

namespace ebb {
namespace gpu {
namespace {

constexpr int threads = 1024;  // of the kernels that are one block

struct Min {
  __device__ double operator()(double a, double b) const { return a < b ? a : b; }
};

__device__ void report(const std::int32_t* target, std::int64_t n, double first, double* found) {
  found[0] = first;
  found[1] = first < static_cast<double>(n) ? target[static_cast<std::int64_t>(first)] : 0;
}

// The first bad place of the `chunk` of each block, n if there is none; one block reports it.
__global__ void __launch_bounds__(threads)
    find_bad_target_kernel(const std::int32_t* target, std::int64_t n, std::int64_t chunk,
                           std::int64_t classes, std::int64_t ignore_index, double* first_of_block,
                           double* found) {
  const std::int64_t from = blockIdx.x * chunk, end = n < from + chunk ? n : from + chunk;
  double first = static_cast<double>(n);
#pragma unroll 8
  for (std::int64_t r = from + threadIdx.x; r < end; r += threads) {
    const std::int32_t t = target[r];
    const bool good = t == ignore_index || (0 <= t && t < classes);
    first = good ? first : Min{}(first, static_cast<double>(r));
  }
  first = block_reduce<threads>(first, Min{});
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) return report(target, n, first, found);
  first_of_block[blockIdx.x] = first;
}

__global__ void __launch_bounds__(threads)
    find_first_kernel(const std::int32_t* target, std::int64_t n, int blocks,
                      const double* first_of_block, double* found) {
  double first = static_cast<double>(n);
  for (int i = threadIdx.x; i < blocks; i += threads) first = Min{}(first, first_of_block[i]);
  first = block_reduce<threads>(first, Min{});
  if (threadIdx.x == 0) report(target, n, first, found);
}

// What both directions know of a row.
template <class C>
struct Labels {
  const std::int32_t* target;
  const C* weight;  // or null
  std::int64_t classes;
  std::int64_t ignore_index;
  C smoothing;

  __device__ bool ignored(std::int64_t row) const { return target[row] == ignore_index; }
  __device__ bool good(std::int64_t row) const { return 0 <= target[row] && target[row] < classes; }
  __device__ C weight_of(std::int64_t c) const { return weight ? weight[c] : C(1); }
};

template <class T>
struct RowLoss {
  using C = Compute<T>;
  Labels<C> labels;
  const T* x;
  C* max;
  C* log_sum;
  C* loss;   // [N]
  C* share;  // [N] what the row adds to the mean's divisor

  template <class Row>
  __device__ void operator()(Row& row) const {
    const auto [row_max, row_sum] = max_and_sum<C>(row);
    const C m = row_max;
    const C l = log(row_sum);
    const C e = labels.smoothing;
    C spread = 0;
    if (e > 0) {
      spread = row.sum([&](auto c, C v) { return labels.weight_of(c) * (l - (v - m)); });
      spread *= e / static_cast<C>(labels.classes);
    }
    if (!row.leader()) return;
    const std::int64_t r = row.index();
    const std::int32_t t = labels.target[r];
    max[r] = m;
    log_sum[r] = l;
    const bool ignored = labels.ignored(r);
    const bool good = !ignored && labels.good(r);
    const C w = good ? labels.weight_of(t) : C(!ignored);
    share[r] = w;
    loss[r] = std::numeric_limits<C>::quiet_NaN();
    if (ignored) loss[r] = 0;
    if (good) loss[r] = (1 - e) * w * (l - (widen(x[r * labels.classes + t]) - m)) + spread;
  }
};

// One block adds up all rows, or what has been added up of many.
template <class T, class Part>
__global__ void __launch_bounds__(threads)
    total_kernel(const Part* loss, const Part* share, std::int64_t n, bool mean,
                 Compute<T>* divisor, T* y) {
  double total = 0;
  double shares = 0;
  for (std::int64_t r = threadIdx.x; r < n; r += threads) {
    total += loss[r];
    shares += share[r];
  }
  total = block_reduce<threads>(total, Sum{});
  shares = block_reduce<threads>(shares, Sum{});
  if (threadIdx.x != 0) return;
  *divisor = mean ? static_cast<Compute<T>>(shares) : 1;
  *y = narrow<T>(static_cast<Compute<T>>(mean ? total / shares : total));
}

template <class T>
__global__ void __launch_bounds__(256)
    copy_losses_kernel(const Compute<T>* loss, std::int64_t n, Compute<T>* divisor, T* y) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (r == 0) *divisor = 1;
  if (r < n) y[r] = narrow<T>(loss[r]);
}

template <class T>
struct LogitsGradient {
  using C = Compute<T>;
  Labels<C> labels;
  const C* weight_sum;  // or null
  const C* max;
  const C* log_sum;
  const C* divisor;
  const T* dy;
  bool each;  // dy has one element for each row
  T* dx;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t r = row.index();
    const std::int64_t t = labels.target[r];
    const bool ignored = labels.ignored(r);
    const bool good = !ignored && labels.good(r);
    const Powers<T> p{max[r], exp(-log_sum[r])};
    const C e = labels.smoothing;
    const C g = widen(dy[each ? r : 0]) / *divisor;
    const C hit = (1 - e) * (good ? labels.weight_of(t) : std::numeric_limits<C>::quiet_NaN());
    const C spread = e / static_cast<C>(labels.classes);
    const C all = weight_sum ? *weight_sum : static_cast<C>(labels.classes);
    if (e == 0) {
      row.write(
          dx, [=, by = g * hit](auto c, C x) { return ignored ? C(0) : by * (p(x) - C(c == t)); });
    } else {
      row.write(dx, [&](auto c, C x) {
        const C d = hit * (p(x) - C(c == t)) + spread * (all * p(x) - labels.weight_of(c));
        return ignored ? C(0) : g * d;
      });
    }
  }
};

template <class T>
Labels<Compute<T>> labels_of(const Tensor& x, const Tensor& target, const Tensor& weight,
                             const CrossEntropyOptions& options) {
  using C = Compute<T>;
  return {target.data<std::int32_t>(), weight.defined() ? weight.data<C>() : nullptr, x.size(1),
          options.ignore_index, static_cast<C>(options.label_smoothing)};
}

}  // namespace
}  // namespace gpu

void gpu::find_bad_target(const Tensor& target, std::int64_t classes, std::int64_t ignore_index,
                          Tensor& found) {
  constexpr std::int64_t chunk = 8 * threads;
  const std::int64_t n = target.numel(), blocks = divide_up(std::max<std::int64_t>(n, 1), chunk);
  const std::int32_t* const targets = target.data<std::int32_t>();
  Tensor parts = empty({blocks}, found.options());
  launch("cross_entropy", find_bad_target_kernel, dim3(static_cast<unsigned>(blocks)), threads, 0,
         targets, n, chunk, classes, ignore_index, parts.data<double>(), found.data<double>());
  if (blocks > 1)
    launch("cross_entropy", find_first_kernel, 1, threads, 0, targets, n, static_cast<int>(blocks),
           parts.data<double>(), found.data<double>());
}

void gpu::cross_entropy(const Tensor& x, const Tensor& target, const Tensor& weight,
                        const CrossEntropyOptions& options, CrossEntropyState& state, Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const std::int64_t n = x.size(0);
    Tensor rows = empty({2, n}, state.max.options());
    C* loss = rows.data<C>();
    C* share = loss + n;
    C* divisor = state.divisor.data<C>();
    const RowLoss<T> body{labels_of<T>(x, target, weight, options),
                          x.data<T>(),
                          state.max.data<C>(),
                          state.log_sum.data<C>(),
                          loss,
                          share};
    stream_rows<T>("cross_entropy", body, {n, x.size(1)}, x.data<T>());
    if (options.reduction == Reduction::none) {
      launch("cross_entropy", copy_losses_kernel<T>,
             dim3(static_cast<unsigned>(divide_up<std::int64_t>(n, 256))), 256, 0, loss, n, divisor,
             y.data<T>());
      return;
    }
    const bool mean = options.reduction == Reduction::mean;
    constexpr std::int64_t few = 16 * threads;  // rows, that one block adds up at once
    if (n <= few) {
      launch("cross_entropy", total_kernel<T, C>, 1, threads, 0, loss, share, n, mean, divisor,
             y.data<T>());
      return;
    }
    Tensor sums = empty({2}, {Dtype::f64, x.device()});
    double* const both = sums.data<double>();
    sum_slices<C>("cross_entropy", Same{}, KeepTotal{both}, 2, n, x.device(),
                  static_cast<const C*>(loss));
    launch("cross_entropy", total_kernel<T, double>, 1, threads, 0, both, both + 1, std::int64_t{1},
           mean, divisor, y.data<T>());
  });
}

void gpu::cross_entropy_backward(const Tensor& x, const Tensor& target, const Tensor& weight,
                                 const CrossEntropyOptions& options, const CrossEntropyState& state,
                                 const Tensor& dy, Tensor& dx) {
  visit<float, double, bf16>(x.dtype(), "cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const CrossEntropyState& s = state;
    const LogitsGradient<T> body{labels_of<T>(x, target, weight, options),
                                 s.weight_sum.defined() ? s.weight_sum.data<C>() : nullptr,
                                 s.max.data<C>(),
                                 s.log_sum.data<C>(),
                                 s.divisor.data<C>(),
                                 dy.data<T>(),
                                 options.reduction == Reduction::none,
                                 dx.data<T>()};
    if (x.numel() == 0) return;
    stream_rows<T>("cross_entropy", body, {x.size(0), x.size(1)}, x.data<T>());
  });
}

}  // namespace ebb
