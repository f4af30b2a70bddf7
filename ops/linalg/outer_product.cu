#include "ebb/ops/linalg/outer_product.h"

#include "ebb/ops/columns.cuh"
#include "ebb/ops/lanes.cuh"

namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "outer_product";
constexpr int rows_each = 64;  // that a thread walks, or a warp in the backward pass

// threadIdx.x owns a pack of columns of b, kept in registers, and walks rows of a; neighbouring
// threadIdx.y take neighbouring rows, so that narrow outputs fill a block too.
template <class T>
__global__ void __launch_bounds__(256)
    product_kernel(const T* a, const T* b, std::int64_t m, std::int64_t n, std::int64_t tiles,
                   bool packed, T* y) {
  constexpr int width = pack_size<T>;
  using P = Pack<T, width>;
  const std::int64_t tile = blockIdx.x % tiles;
  const std::int64_t first = blockIdx.x / tiles * (blockDim.y * rows_each) + threadIdx.y;
  const std::int64_t start = tile * blockDim.x * width;
  const std::int64_t step = packed ? 1 : blockDim.x;  // from one of its columns to the next
  const std::int64_t column = start + (packed ? threadIdx.x * width : threadIdx.x);
  P own{};
#pragma unroll
  for (int j = 0; j < width; ++j)
    if (column + j * step < n) own.v[j] = b[column + j * step];
  if (column >= n) return;
#pragma unroll 4
  for (int k = 0; k < rows_each; ++k) {
    const std::int64_t row = first + k * blockDim.y;
    if (row >= m) return;
    const Compute<T> left = widen(a[row]);
    P out;
#pragma unroll
    for (int j = 0; j < width; ++j) out.v[j] = narrow<T>(left * widen(own.v[j]));
    T* const to = y + row * n + column;
    if (packed) {
      *reinterpret_cast<P*>(to) = out;
      continue;
    }
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (column + j * step < n) to[j * step] = out.v[j];
  }
}

// A warp owns a tile of columns, with b and the sums over its rows in registers, and reads G once.
// It writes its part of da, [tiles][m], and of db, [row parts][n]; either may be null.
template <class T, int width>
__global__ void __launch_bounds__(128)
    gradients_kernel(const T* a, const T* b, const T* g, std::int64_t m, std::int64_t n,
                     std::int64_t tiles, Compute<T>* part_a, Compute<T>* part_b) {
  using C = Compute<T>;
  constexpr int packs = 4 * pack_size<T> / width;
  using L = Lanes<T, warp_size, packs, width>;
  const std::int64_t warp =
      static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / warp_size) + threadIdx.x / warp_size;
  const std::int64_t tile = warp % tiles;
  const std::int64_t part = warp / tiles;
  const std::int64_t start = tile * L::columns;
  const std::int64_t first = part * rows_each;
  if (first >= m) return;
  const std::int64_t last = m - first < rows_each ? m : first + rows_each;
  const std::int64_t rest = n - start;
  const L lanes{static_cast<int>(rest < L::columns ? rest : L::columns),
                static_cast<int>(threadIdx.x % warp_size)};
  typename L::P right[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) right[k] = lanes.load(b + start, k);
  C sums[packs][width] = {};
#pragma unroll 2
  for (std::int64_t row = first; row < last; ++row) {
    typename L::P in[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k) in[k] = lanes.load(g + row * n + start, k);
    const C left = widen(a[row]);
    C dot = 0;
    lanes.each([&](int k, int j) {
      const C v = widen(in[k].v[j]);
      dot += v * widen(right[k].v[j]);
      sums[k][j] += v * left;
    });
    dot = warp_reduce(dot, Sum{});
    if (part_a && lanes.lane == 0) part_a[tile * m + row] = dot;
  }
  if (!part_b) return;
  lanes.each([&](int k, int j) { part_b[part * n + start + lanes.at(k) + j] = sums[k][j]; });
}

template <class T>
struct Total {
  T* y;
  __device__ void operator()(std::int64_t column, const double (&sum)[1]) const {
    y[column] = narrow<T>(static_cast<Compute<T>>(sum[0]));
  }
};

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

template <class T>
void gradients(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  using C = Compute<T>;
  constexpr int warps = 4;  // a block
  const std::int64_t m = a.numel();
  const std::int64_t n = b.numel();
  const std::int64_t tiles = divide_up<std::int64_t>(n, warp_size * 4 * pack_size<T>);
  const std::int64_t parts = divide_up<std::int64_t>(m, rows_each);
  const TensorOptions wide{dtype_of<C>, a.device()};
  Tensor part_a = da.defined() ? empty({tiles, m}, wide) : Tensor();
  Tensor part_b = db.defined() ? empty({parts, n}, wide) : Tensor();
  C* const to_a = da.defined() ? part_a.data<C>() : nullptr;
  C* const to_b = db.defined() ? part_b.data<C>() : nullptr;
  const bool packed = n % pack_size<T> == 0 && aligned(b.data<T>()) && aligned(dy.data<T>());
  launch(op, packed ? gradients_kernel<T, pack_size<T>> : gradients_kernel<T, 1>,
         dim3(static_cast<unsigned>(divide_up<std::int64_t>(tiles * parts, warps))),
         warps * warp_size, 0, a.data<T>(), b.data<T>(), dy.data<T>(), m, n, tiles, to_a, to_b);
  if (da.defined())
    columns<C, 1>(op, InputSums<C>{}, Total<T>{da.data<T>()}, {1, tiles, m}, a.device(),
                  static_cast<const C*>(to_a));
  if (db.defined())
    columns<C, 1>(op, InputSums<C>{}, Total<T>{db.data<T>()}, {1, parts, n}, a.device(),
                  static_cast<const C*>(to_b));
}

}  // namespace
}  // namespace gpu

void gpu::outer_product(const Tensor& a, const Tensor& b, Tensor& y) {
  if (y.numel() == 0) return;
  visit<float, double, bf16>(a.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t n = b.numel();
    unsigned across = 256;
    while (across > 1 && across / 2 * pack_size<T> >= n) across /= 2;
    const unsigned along = 256 / across;
    const std::int64_t tiles = divide_up<std::int64_t>(n, across * pack_size<T>);
    const std::int64_t rows = divide_up<std::int64_t>(a.numel(), along * rows_each);
    const bool packed = n % pack_size<T> == 0 && aligned(y.data<T>());
    launch(op, product_kernel<T>, dim3(static_cast<unsigned>(tiles * rows)), dim3(across, along), 0,
           a.data<T>(), b.data<T>(), a.numel(), n, tiles, packed, y.data<T>());
  });
}

// Of an output without elements both gradients are sums of nothing.
void gpu::outer_product_backward(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da,
                                 Tensor& db) {
  if (dy.numel() == 0) {
    if (da.defined()) da.fill_(0);
    if (db.defined()) db.fill_(0);
    return;
  }
  visit<float, double, bf16>(a.dtype(), op,
                             [&](auto zero) { gradients<decltype(zero)>(a, b, dy, da, db); });
}

}  // namespace ebb
