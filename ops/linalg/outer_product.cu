#include "ebb/ops/linalg/outer_product.h"

#include <algorithm>

#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/parts.cuh"
#include "ebb/ops/rows.cuh"

namespace ebb {
namespace gpu {
namespace {

constexpr const char* op = "outer_product";

constexpr int product_threads = 256;
constexpr int product_packs = 2;  // of a thread

// Packs of y side by side, so that the GPU writes from one end to the other: 16 bytes where rows
// are a multiple of that, else single elements. n.d of them are a row. All is read before the first
// of them is written, or each would wait for its operands.
template <class T, int width, class Index>
__global__ void __launch_bounds__(product_threads)
    product_kernel(const T* a, const Pack<T, width>* b, WordDivider<Index> n, Index total,
                   Pack<T, width>* y) {
  const Index start = blockIdx.x * Index{product_threads * product_packs} + threadIdx.x;
  Compute<T> left[product_packs];
  Pack<T, width> right[product_packs];
#pragma unroll
  for (int p = 0; p < product_packs; ++p) {
    const Index i = start + p * product_threads;
    const Index row = i < total ? n.quotient(i) : 0;
    left[p] = widen(a[row]);
    right[p] = b[i < total ? i - row * n.d : 0];
  }
#pragma unroll
  for (int p = 0; p < product_packs; ++p) {
    Pack<T, width> out;
#pragma unroll
    for (int j = 0; j < width; ++j) out.v[j] = narrow<T>(left[p] * widen(right[p].v[j]));
    if (start + p * product_threads < total) store(y + start + p * product_threads, out);
  }
}

template <class T, int width>
void product(const Tensor& a, const Tensor& b, Tensor& y) {
  using P = Pack<T, width>;
  const auto* right = reinterpret_cast<const P*>(b.data<T>());
  auto* to = reinterpret_cast<P*>(y.data<T>());
  const std::int64_t packs = y.numel() / width;
  const auto go = [&]<class Index>(Index total) {
    launch(
        op, product_kernel<T, width, Index>,
        dim3(
            static_cast<unsigned>(divide_up<std::int64_t>(packs, product_threads * product_packs))),
        product_threads, 0, a.data<T>(), right, WordDivider<Index>(b.numel() / width), total, to);
  };
  constexpr std::int64_t small = std::int64_t{1} << 31;
  packs < small ? go(static_cast<std::uint32_t>(packs)) : go(static_cast<std::uint64_t>(packs));
}

template <class T>
struct Gradients {
  using C = Compute<T>;
  const T* a;
  const T* b;
  const T* g;
  std::int64_t m;
  std::int64_t n;
  std::int64_t tiles;
  std::int64_t rows;  // of a part: 8 to 64 for each warp
  C* part_a;          // [tiles][m], or null
  C* part_b;          // [parts][n], or null
};

constexpr int warps = 8;  // of a block
template <class T>
constexpr std::int64_t tile_columns = sizeof(T) == 8 ? 256 : 512;
constexpr int rows_at_once = 2;

// A block owns a tile of columns and a part of the rows, each warp a share of those, with its
// columns of b and their sums in registers; G is read once, some rows at a time.
template <class T, bool packed, bool passing>
__global__ void __launch_bounds__(warps* warp_size, sizeof(T) == 2 ? 4 : 2)
    gradients_kernel(Gradients<T> s) {
  using C = Compute<T>;
  using P = Pack<T, pack_size<T>>;
  constexpr int width = pack_size<T>;
  constexpr int tile = tile_columns<T>;
  constexpr int packs = tile / (warp_size * width);
  constexpr int together = rows_at_once;
  const int lane = threadIdx.x % warp_size;
  const int warp = threadIdx.x / warp_size;
  const std::int64_t part = blockIdx.x / s.tiles;
  const std::int64_t column = blockIdx.x - part * s.tiles;
  const std::int64_t start = column * tile;
  const std::int64_t first = part * s.rows + warp * (s.rows / warps);
  const std::int64_t end = s.m - first < s.rows / warps ? s.m : first + s.rows / warps;
  const int cols = static_cast<int>(s.n - start < tile ? s.n - start : tile);
  const auto at = [&](int k, int j) {
    return k * (warp_size * width) + (packed ? lane * width + j : j * warp_size + lane);
  };
  const auto load = [&]<bool passes>(Words& x, const T* p, int k) {
    if constexpr (packed) {
      if (at(k, 0) < cols) x = gpu::load<passes>(reinterpret_cast<const Words*>(p + at(k, 0)));
    } else {
      P pack{};
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (at(k, j) < cols) pack.v[j] = p[at(k, j)];
      x = __builtin_bit_cast(Words, pack);
    }
  };
  Words right[packs] = {};  // 0 beyond the columns
#pragma unroll
  for (int k = 0; k < packs; ++k) load.template operator()<false>(right[k], s.b + start, k);
  C sums[packs][width] = {};
  for (std::int64_t row = first; row < end; row += together) {
    Words in[together][packs] = {};
    C left[together] = {};
#pragma unroll
    for (int r = 0; r < together; ++r) {
      if (row + r >= end) continue;
      left[r] = widen(s.a[row + r]);
#pragma unroll
      for (int k = 0; k < packs; ++k)
        load.template operator()<passing>(in[r][k], s.g + (row + r) * s.n + start, k);
    }
    C dot[together] = {};
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const C b = element<T>(right[k], j);
#pragma unroll
        for (int r = 0; r < together; ++r) {
          const C g = element<T>(in[r][k], j);
          dot[r] += g * b;
          sums[k][j] += g * left[r];
        }
      }
    if (!s.part_a) continue;
#pragma unroll
    for (int r = 0; r < together; ++r) {
      dot[r] = warp_reduce(dot[r], Sum{});
      if (lane == 0 && row + r < end) s.part_a[column * s.m + row + r] = dot[r];
    }
  }
  if (!s.part_b) return;
  __shared__ C shared[warps][tile];
#pragma unroll
  for (int k = 0; k < packs; ++k)
#pragma unroll
    for (int j = 0; j < width; ++j) shared[warp][at(k, j)] = sums[k][j];
  __syncthreads();
  for (int i = threadIdx.x; i < cols; i += warps * warp_size) {
    C total = shared[0][i];
#pragma unroll
    for (int w = 1; w < warps; ++w) total += shared[w][i];
    s.part_b[part * s.n + start + i] = total;
  }
}

// `count` parts of each of `elements` sums.
template <class T>
struct Parts {
  const Compute<T>* part;
  std::int64_t count;
  std::int64_t elements;
  T* y;
};

constexpr int finish_threads = 32;  // that share an element

// A block adds up the parts of 32 elements of da, or in later blocks of db.
template <class T>
__global__ void __launch_bounds__(warp_size* finish_threads)
    finish_kernel(Parts<T> a, Parts<T> b, std::int64_t blocks_a) {
  await_previous();
  const bool first = blockIdx.x < blocks_a;
  const Parts<T> s = first ? a : b;
  const std::int64_t i = (blockIdx.x - (first ? 0 : blocks_a)) * warp_size + threadIdx.x;
  double sum = 0;
  if (i < s.elements) {
#pragma unroll 4
    for (std::int64_t k = threadIdx.y; k < s.count; k += finish_threads)
      sum += s.part[k * s.elements + i];
  }
  __shared__ double sums[finish_threads][warp_size];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= s.elements) return;
  for (int t = 1; t < finish_threads; ++t) sum += sums[t][threadIdx.x];
  s.y[i] = narrow<T>(static_cast<Compute<T>>(sum));
}

// The number of parts is fixed by the shape, so that every GPU adds in the same order.
template <class T>
void gradients(const Tensor& a, const Tensor& b, const Tensor& dy, Tensor& da, Tensor& db) {
  using C = Compute<T>;
  const std::int64_t m = a.numel();
  const std::int64_t n = b.numel();
  const std::int64_t tiles = divide_up(n, tile_columns<T>);
  constexpr std::int64_t blocks = 4096;  // that keep every GPU busy; more only leave more parts
  const std::int64_t rows =
      std::clamp<std::int64_t>(divide_up(m * tiles, blocks * warps), 8, 64) * warps;
  const std::int64_t parts = divide_up(m, rows);
  const TensorOptions wide{dtype_of<C>, a.device()};
  Tensor part_a = da.defined() ? empty({tiles, m}, wide) : Tensor();
  Tensor part_b = db.defined() ? empty({parts, n}, wide) : Tensor();
  const Gradients<T> state{a.data<T>(),
                           b.data<T>(),
                           dy.data<T>(),
                           m,
                           n,
                           tiles,
                           rows,
                           da.defined() ? part_a.data<C>() : nullptr,
                           db.defined() ? part_b.data<C>() : nullptr};
  const bool packed = n % pack_size<T> == 0;
  const auto kernel = !packed            ? gradients_kernel<T, false, false>
                      : passes<T>(m * n) ? gradients_kernel<T, true, true>
                                         : gradients_kernel<T, true, false>;
  launch(op, kernel, dim3(static_cast<unsigned>(tiles * parts)), warps * warp_size, 0, state);
  Parts<T> to_a{}, to_b{};
  if (da.defined()) to_a = {state.part_a, tiles, m, da.data<T>()};
  if (db.defined()) to_b = {state.part_b, parts, n, db.data<T>()};
  const std::int64_t blocks_a = divide_up<std::int64_t>(to_a.elements, warp_size);
  const std::int64_t blocks_b = divide_up<std::int64_t>(to_b.elements, warp_size);
  launch_next(op, finish_kernel<T>, dim3(static_cast<unsigned>(blocks_a + blocks_b)),
              dim3(warp_size, finish_threads), to_a, to_b, blocks_a);
}

}  // namespace
}  // namespace gpu

void gpu::outer_product(const Tensor& a, const Tensor& b, Tensor& y) {
  if (y.numel() == 0) return;
  visit<float, double, bf16>(a.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    constexpr int width = pack_size<T>;
    b.numel() % width == 0 ? product<T, width>(a, b, y) : product<T, 1>(a, b, y);
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
