#include "ebb/ops/divider.cuh"
#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/elementwise/broadcast.h"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

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
    periodic_kernel(F f, std::int64_t n, PeriodicIndex index, const T* a, const T* b, T* y) {
  constexpr int width = pack_size<T>;
  constexpr std::int64_t tile = std::int64_t{gpu::map_threads} * width;
  using P = Pack<T, width>;
  const std::int64_t start = blockIdx.x * tile;
  if (start + tile > n) {
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
                            p.inner == 1 && p.period % width == 0,
                            p.inner % width == 0 || p.period == 1};
  gpu::launch("arithmetic", periodic_kernel<T, F>, dim3(static_cast<unsigned>(divide_up(n, tile))),
              gpu::map_threads, 0, f, n, index, a, b, y);
}

// What a pack of y meets of an operand.
enum class Meets { pack, element, elements };

// Operands that both repeat, and where they have what belongs to an element of y.
template <class T, class Word>
struct Operands {
  static constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const T* x[2];
  Meets meets[2];
  int rank;
  gpu::WordDivider<Word> dims[Shape::max_rank];
  Word steps[2][Shape::max_rank];

  Operands(const Layout& l, const T* a, const T* b) : x{a, b}, rank(l.rank) {
    const std::int64_t* const all[] = {l.a, l.b};
    for (int d = 0; d < rank; ++d) dims[d] = gpu::WordDivider<Word>(l.dims[d]);
    for (int k = 0; k < 2; ++k) {
      for (int d = 0; d < rank; ++d) steps[k][d] = static_cast<Word>(all[k][d]);
      meets[k] = l.dims[rank - 1] % width != 0 ? Meets::elements
                 : all[k][rank - 1] == 0       ? Meets::element
                                               : Meets::pack;
    }
  }

  __device__ Word place(int k, Word i) const {
    Word at = 0;
#pragma unroll
    for (int d = Shape::max_rank - 1; d > 0; --d) {
      if (d >= rank) continue;
      const Word q = dims[d].quotient(i);
      at += (i - q * dims[d].d) * steps[k][d];
      i = q;
    }
    return at + i * steps[k][0];
  }

  // Of operand k, for the pack of y at i; y ends at n.
  __device__ P load(int k, Word i, Word n) const {
    P pack{};
    if (meets[k] == Meets::elements || n - i < width) {
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < n - i) pack.v[j] = x[k][place(k, i + j)];
    } else if (meets[k] == Meets::pack) {
      pack = *reinterpret_cast<const P*>(x[k] + place(k, i));
    } else {
      const T element = x[k][place(k, i)];
#pragma unroll
      for (int j = 0; j < width; ++j) pack.v[j] = element;
    }
    return pack;
  }
};

// Two packs of y a thread, as there is little to read, and all of that before the first is written.
template <class T, class Word, class F>
__global__ void __launch_bounds__(gpu::map_threads)
    general_kernel(F f, Word n, const __grid_constant__ Operands<T, Word> from, T* y) {
  constexpr int packs = 2;
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const Word start = (Word{blockIdx.x} * (gpu::map_threads * packs) + threadIdx.x) * width;
  const auto at = [&](int p) { return start + static_cast<Word>(p * gpu::map_threads * width); };
  P a[packs], b[packs];
#pragma unroll
  for (int p = 0; p < packs; ++p) {
    if (at(p) >= n) break;
    a[p] = from.load(0, at(p), n);
    b[p] = from.load(1, at(p), n);
  }
#pragma unroll
  for (int p = 0; p < packs; ++p) {
    if (at(p) >= n) return;
    P out;
#pragma unroll
    for (int j = 0; j < width; ++j)
      out.v[j] = gpu::narrow<T>(f(gpu::widen(a[p].v[j]), gpu::widen(b[p].v[j])));
    if (n - at(p) >= width) {
      gpu::store(reinterpret_cast<P*>(y + at(p)), out);
    } else {
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < n - at(p)) y[at(p) + j] = out.v[j];
    }
  }
}

template <class T, class F>
void general(const F& f, const Layout& layout, std::int64_t n, const T* a, const T* b, T* y) {
  const auto go = [&]<class Word>(Word size) {
    constexpr std::int64_t tile = std::int64_t{gpu::map_threads} * 2 * pack_size<T>;
    gpu::launch("arithmetic", general_kernel<T, Word, F>,
                dim3(static_cast<unsigned>(divide_up(n, tile))), gpu::map_threads, 0, f, size,
                Operands<T, Word>(layout, a, b), y);
  };
  constexpr std::int64_t small = std::int64_t{1} << 31;
  n < small ? go(static_cast<std::uint32_t>(n)) : go(static_cast<std::uint64_t>(n));
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
    general(f, layout, n, a, b, y);
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
