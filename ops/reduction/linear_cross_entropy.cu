#include "ebb/ops/reduction/linear_cross_entropy.h"
#include "ebb/ops/reduction/softmax.cuh"

namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "linear_cross_entropy";
constexpr int count_threads = 1024;  // of one block

template <class C>
__global__ void __launch_bounds__(count_threads)
    count_kernel(const std::int32_t* target, std::int64_t n, std::int64_t ignore_index, C* count) {
  double own = 0;
  for (std::int64_t r = threadIdx.x; r < n; r += count_threads) own += target[r] != ignore_index;
  own = block_reduce<count_threads>(own, Sum{});
  if (threadIdx.x == 0) *count = static_cast<C>(own);
}

// The target's logit is read before the reductions, at whose barriers all threads of a row meet,
// and written over after them.
template <class T>
struct RowLossAndGradient {
  using C = Compute<T>;
  const std::int32_t* target;  // of the first row
  std::int64_t classes;
  std::int64_t ignore_index;
  const C* divisor;
  T* x;
  C* loss;  // of the first row

  template <class Row>
  __device__ void operator()(Row& row) const {
    const std::int64_t r = row.index();
    const std::int64_t t = target[r];
    const bool ignored = t == ignore_index;
    const bool good = !ignored && 0 <= t && t < classes;
    const C at_target = good && row.leader() ? widen(x[r * classes + t]) : C(0);
    const auto [max, sum] = max_and_sum<C>(row);
    constexpr C nan = std::numeric_limits<C>::quiet_NaN();
    if (row.leader()) loss[r] = ignored ? C(0) : good ? log(sum) - (at_target - max) : nan;
    const C by = good ? 1 / *divisor : nan;
    const Powers<T> p{max, by / sum};
    row.write(x, [=](auto c, C v) { return ignored ? C(0) : p(v) - (c == t ? by : C(0)); });
  }
};

template <class From, class To>
__global__ void __launch_bounds__(256)
    scale_kernel(const From* x, const To* factor, std::int64_t n, To* y) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  const auto by = widen(*factor);
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride)
    y[i] = narrow<To>(widen(x[i]) * by);
}

template <class From, class To>
void scale_as(const Tensor& x, const Tensor& factor, Tensor& y) {
  constexpr std::int64_t most = 1 << 14;
  const std::int64_t blocks = std::min(divide_up<std::int64_t>(x.numel(), 256), most);
  launch(op, scale_kernel<From, To>, dim3(static_cast<unsigned>(blocks)), 256, 0, x.data<From>(),
         factor.data<To>(), x.numel(), y.data<To>());
}

}  // namespace
}  // namespace gpu

void gpu::count_targets(const Tensor& target, std::int64_t ignore_index, Tensor& count) {
  visit<float, double>(count.dtype(), op, [&](auto zero) {
    using C = decltype(zero);
    launch(op, count_kernel<C>, 1, count_threads, 0, target.data<std::int32_t>(), target.numel(),
           ignore_index, count.data<C>());
  });
}

void gpu::loss_and_gradient(const Tensor& target, std::int64_t first, std::int64_t ignore_index,
                            const Tensor& divisor, Tensor& logits, Tensor& loss) {
  visit<float, double, bf16>(logits.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using C = Compute<T>;
    const RowLossAndGradient<T> body{target.data<std::int32_t>() + first,
                                     logits.size(1),
                                     ignore_index,
                                     divisor.data<C>(),
                                     logits.data<T>(),
                                     loss.data<C>() + first};
    keep_rows<T>(op, body, logits.size(0), logits.size(1), static_cast<const T*>(logits.data<T>()));
  });
}

void gpu::scale(const Tensor& x, const Tensor& factor, Tensor& y) {
  if (x.numel() == 0) return;
  if (x.dtype() != y.dtype()) return scale_as<float, bf16>(x, factor, y);
  visit<float, double, bf16>(x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    scale_as<T, T>(x, factor, y);
  });
}

}  // namespace ebb
