#include "ebb/ops/divider.cuh"
#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/elementwise/broadcast.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using gpu::aligned;
using gpu::divide_up;
using gpu::Divider;
using gpu::Pack;
using gpu::pack_size;

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a / b;
  }
};

template <class F>
struct Swapped {
  F f;
  template <class T>
  __device__ T operator()(T a, T b) const {
    return f(b, a);
  }
};

template <class F, class C>
struct WithNumber {
  F f;
  C s;
  bool s_first;
  __device__ C operator()(C x) const { return s_first ? f(s, x) : f(x, s); }
};

struct MulBackward {
  template <class T>
  __device__ gpu::Values<T, 2> operator()(T a, T b, T dy) const {
    return {{dy * b, dy * a}};
  }
};

struct DivBackward {
  template <class T>
  __device__ gpu::Values<T, 2> operator()(T y, T b, T dy) const {
    const T q = dy / b;
    return {{q, -(q * y)}};
  }
};

template <class F>
void with_formula(Sign sign, F&& f) {
  switch (sign) {
    case Sign::add:
      return f(Add{});
    case Sign::sub:
      return f(Sub{});
    case Sign::mul:
      return f(Mul{});
    case Sign::div:
      return f(Div{});
  }
}

struct PeriodicIndex {
  Divider inner;
  Divider period;
  bool adjacent;  // a pack meets adjacent elements of b
  bool constant;  // a pack meets one element of b

  __device__ std::int64_t operator()(std::int64_t i) const {
    return static_cast<std::int64_t>(period.remainder(inner.quotient(i)));
  }
};

// y[i] = f(a[i], b[(i / inner) % period]); no division at all, one such index a pack where that
// is enough.
template <class T, class F>
__global__ void __launch_bounds__(gpu::map_threads)
    periodic_kernel(F f, std::int64_t n, bool packed, PeriodicIndex index, const T* a, const T* b,
                    T* y) {
  constexpr int width = pack_size<T>;
  constexpr std::int64_t tile = std::int64_t{gpu::map_threads} * width;
  using P = Pack<T, width>;
  const std::int64_t start = blockIdx.x * tile;
  if (!packed || start + tile > n) {
    const std::int64_t end = n < start + tile ? n : start + tile;
    for (std::int64_t i = start + threadIdx.x; i < end; i += gpu::map_threads)
      y[i] = gpu::narrow<T>(f(gpu::widen(a[i]), gpu::widen(b[index(i)])));
    return;
  }
  const std::int64_t i = start + threadIdx.x * width;
  const P in = *reinterpret_cast<const P*>(a + i);
  P with;
  if (index.adjacent) {
    with = *reinterpret_cast<const P*>(b + index(i));
  } else if (index.constant) {
    const T value = b[index(i)];
#pragma unroll
    for (int j = 0; j < width; ++j) with.v[j] = value;
  } else {
#pragma unroll
    for (int j = 0; j < width; ++j) with.v[j] = b[index(i + j)];
  }
  P out;
#pragma unroll
  for (int j = 0; j < width; ++j)
    out.v[j] = gpu::narrow<T>(f(gpu::widen(in.v[j]), gpu::widen(with.v[j])));
  gpu::store(reinterpret_cast<P*>(y + i), out);
}

template <class T, class F>
void periodic(const F& f, const Periodic& p, std::int64_t n, const T* a, const T* b, T* y) {
  constexpr int width = pack_size<T>;
  constexpr std::int64_t tile = std::int64_t{gpu::map_threads} * width;
  const PeriodicIndex index{Divider(p.inner), Divider(p.period),
                            p.inner == 1 && p.period % width == 0 && aligned(b),
                            p.inner % width == 0 || p.period == 1};
  gpu::launch("arithmetic", periodic_kernel<T, F>, dim3(static_cast<unsigned>(divide_up(n, tile))),
              gpu::map_threads, 0, f, n, aligned(a) && aligned(y), index, a, b, y);
}

struct GeneralIndex {
  int rank;
  Divider dims[Shape::max_rank];
  std::int64_t a[Shape::max_rank];
  std::int64_t b[Shape::max_rank];

  explicit GeneralIndex(const Layout& l) : rank(l.rank) {
    for (int d = 0; d < rank; ++d) {
      dims[d] = Divider(l.dims[d]);
      a[d] = l.a[d];
      b[d] = l.b[d];
    }
  }
};

// Any layout: both operands repeat. One thread an element.
template <class T, class F>
__global__ void __launch_bounds__(gpu::map_threads)
    general_kernel(F f, std::int64_t n, GeneralIndex index, const T* a, const T* b, T* y) {
  const std::int64_t i = blockIdx.x * std::int64_t{gpu::map_threads} + threadIdx.x;
  if (i >= n) return;
  std::uint64_t rest = i;
  std::int64_t from_a = 0;
  std::int64_t from_b = 0;
#pragma unroll
  for (int d = Shape::max_rank - 1; d >= 0; --d) {
    if (d >= index.rank) continue;
    const std::uint64_t q = index.dims[d].quotient(rest);
    const auto at = static_cast<std::int64_t>(rest - q * index.dims[d].d);
    from_a += at * index.a[d];
    from_b += at * index.b[d];
    rest = q;
  }
  y[i] = gpu::narrow<T>(f(gpu::widen(a[from_a]), gpu::widen(b[from_b])));
}

template <class T, class F>
void any_layout(const F& f, const Layout& layout, std::int64_t n, const T* a, const T* b, T* y) {
  const Periodic p(layout);
  if (layout.equal()) {
    gpu::map<T>("arithmetic", f, n, y, a, b);
  } else if (p.found && p.first) {
    periodic(Swapped<F>{f}, p, n, b, a, y);
  } else if (p.found) {
    periodic(f, p, n, a, b, y);
  } else {
    gpu::launch("arithmetic", general_kernel<T, F>,
                dim3(static_cast<unsigned>(divide_up<std::int64_t>(n, gpu::map_threads))),
                gpu::map_threads, 0, f, n, GeneralIndex(layout), a, b, y);
  }
}

}  // namespace

void gpu::arithmetic(Sign sign, const Tensor& a, const Tensor& b, Tensor& y) {
  if (y.numel() == 0) return;
  const Layout layout(y.shape(), a.shape(), b.shape());
  visit<float, double, bf16>(y.dtype(), "arithmetic", [&](auto zero) {
    using T = decltype(zero);
    with_formula(sign, [&](auto f) {
      any_layout(f, layout, y.numel(), a.data<T>(), b.data<T>(), y.data<T>());
    });
  });
}

void gpu::arithmetic_with_number(Sign sign, const Tensor& x, double s, bool s_first, Tensor& y) {
  with_formula(sign, [&](auto f) {
    const auto make = [&](auto zero) {
      using C = Compute<decltype(zero)>;
      return WithNumber<decltype(f), C>{f, static_cast<C>(s), s_first};
    };
    map_tensors("arithmetic", make, std::tie(y), x);
  });
}

void gpu::mul_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  map("mul", MulBackward{}, std::tie(da, db), a, b, dy);
}

void gpu::div_backward(const Tensor& y, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  map("div", DivBackward{}, std::tie(da, db), y, b, dy);
}

}  // namespace ebb
