// Matrix products in tiles: C[m,n] = Σ over k of A[m,k] · B[k,n], where operands and result may be
// anything that can be computed from their indices (a convolution's are pixels gathered from
// images).
//
// A block of threads makes one tile of C. For each slab of `depth` k, loaders fetch the slab of A
// and of B into registers while the slab before is multiplied, then put it into the other half of
// shared memory: one barrier a slab, and the memory's latency is hidden behind the arithmetic.
//
//   loader:  fetch()     reads its share of the next slab (zeros beyond the matrix) and steps on
//            put(slab)   writes it to slab[k][m or n]
//   core:    multiply(a, b)   adds one slab's product to its sums
//            add_up()         adds these to its totals, if it has_totals, and begins them anew
//            for_each(f)      f(m, n, pack): adjacent n of one row of the finished tile
//
// FmaCore is the core for every type, in Compute<T>: float32 means float32. One long sum rounds
// each product to the digits of all before it: of 180 positive ones, the worst of a million such
// sums is wrong by 17 · 2⁻²⁴ of itself, and with totals of sums of `short_sum` slabs by 6.
#pragma once
#include <algorithm>

#include "ebb/core/cuda.cuh"
#include "ebb/core/tensor.h"

namespace ebb::gpu {

inline constexpr int tile_depth = 8;
inline constexpr int short_sum = 8;     // slabs that a core with totals adds up at a time
inline constexpr int longest_sum = 20;  // slabs of float32 that one without them may add up

// rows × cols of C a block, thread_rows × thread_cols a thread. A warp is 4 × 8 threads, so that
// the fragments it reads from shared memory are 4 and 8 packs: no bank conflicts.
template <int rows_, int cols_, int thread_rows_, int thread_cols_>
struct Tile {
  static constexpr int rows = rows_;
  static constexpr int cols = cols_;
  static constexpr int thread_rows = thread_rows_;
  static constexpr int thread_cols = thread_cols_;
  static constexpr int threads = rows * cols / (thread_rows * thread_cols);
  static_assert(rows % (4 * thread_rows) == 0 && cols % (8 * thread_cols) == 0);
};

// One slab of an operand. The four spare elements spread a column of 8 k × 4 m over all banks.
template <class V, int extent>
struct alignas(32) Slab {
  V at[tile_depth][extent + 4];
};

template <class V, class Tile>
struct TileMemory {
  Slab<V, Tile::rows> a[2];
  Slab<V, Tile::cols> b[2];
};

template <class V, class Tile, bool totals = false>
class FmaCore {
  static constexpr int row_pack = Tile::thread_rows < 4 ? Tile::thread_rows : 4;
  static constexpr int col_pack = Tile::thread_cols < 4 ? Tile::thread_cols : 4;
  static constexpr int row_packs = Tile::thread_rows / row_pack;
  static constexpr int col_packs = Tile::thread_cols / col_pack;
  static constexpr int row_stride = Tile::rows / row_packs;  // between a thread's packs
  static constexpr int col_stride = Tile::cols / col_packs;

 public:
  using Columns = Pack<V, col_pack>;
  static constexpr bool has_totals = totals;

  __device__ FmaCore() {
    constexpr int warps_across = Tile::cols / (8 * Tile::thread_cols);
    const int warp = threadIdx.x / warp_size;
    const int lane = threadIdx.x % warp_size;
    row_ = (warp / warps_across * 4 + lane / 8) * row_pack;
    col_ = (warp % warps_across * 8 + lane % 8) * col_pack;
  }

  __device__ void multiply(const Slab<V, Tile::rows>& a, const Slab<V, Tile::cols>& b) {
#pragma unroll
    for (int k = 0; k < tile_depth; ++k) {
      Pack<V, row_pack> m[row_packs];
      Columns n[col_packs];
#pragma unroll
      for (int i = 0; i < row_packs; ++i)
        m[i] = *reinterpret_cast<const Pack<V, row_pack>*>(&a.at[k][row_ + i * row_stride]);
#pragma unroll
      for (int j = 0; j < col_packs; ++j)
        n[j] = *reinterpret_cast<const Columns*>(&b.at[k][col_ + j * col_stride]);
#pragma unroll
      for (int i = 0; i < Tile::thread_rows; ++i)
#pragma unroll
        for (int j = 0; j < Tile::thread_cols; ++j)
          sum_[i][j / col_pack].v[j % col_pack] +=
              m[i / row_pack].v[i % row_pack] * n[j / col_pack].v[j % col_pack];
    }
  }

  // Totals are used so seldom that they may lie in memory, where registers are short.
  __device__ void add_up() {
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; ++i)
#pragma unroll
      for (int j = 0; j < col_packs; ++j)
#pragma unroll
        for (int e = 0; e < col_pack; ++e) total_[i][j].v[e] += sum_[i][j].v[e];
#pragma unroll
    for (auto& row : sum_)
#pragma unroll
      for (Columns& sums : row) sums = {};
  }

  template <class F>
  __device__ void for_each(F f) const {
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; ++i)
#pragma unroll
      for (int j = 0; j < col_packs; ++j)
        f(row_ + i / row_pack * row_stride + i % row_pack, col_ + j * col_stride,
          totals ? total_[i][j] : sum_[i][j]);
  }

 private:
  int row_;
  int col_;
  Columns sum_[Tile::thread_rows][col_packs] = {}, total_[Tile::thread_rows][col_packs] = {};
};

// Adds `slabs` slabs of A·B to the core's sums. All threads of the block must call it.
template <class Memory, class A, class B, class Core>
__device__ void multiply_tiles(Memory& memory, A& a, B& b, Core& core, int slabs) {
  if (slabs <= 0) return;
  a.fetch();
  b.fetch();
  a.put(memory.a[0]);
  b.put(memory.b[0]);
  __syncthreads();
  for (int slab = 1; slab <= slabs; ++slab) {
    const int now = (slab - 1) % 2;
    if (slab < slabs) {
      a.fetch();
      b.fetch();
    }
    core.multiply(memory.a[now], memory.b[now]);
    if (Core::has_totals && (slab % short_sum == 0 || slab == slabs)) core.add_up();
    if (slab < slabs) {
      a.put(memory.a[1 - now]);
      b.put(memory.b[1 - now]);
      __syncthreads();
    }
  }
}

// A matrix [k, extent], padded with zeros to whole tiles, as loader of either operand.
template <class V, class Tile, int extent>
class PackedLoader {
  static constexpr int packs = tile_depth * extent / 4;
  static constexpr int each = divide_up(packs, Tile::threads);

 public:
  // `from` is the tile's first element, `stride` the padded extent of the whole matrix.
  __device__ PackedLoader(const V* from, std::int64_t stride) : next_(from), stride_(stride) {}

  __device__ void fetch() {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int pack = threadIdx.x + i * Tile::threads;
      if (packs % Tile::threads == 0 || pack < packs)
        held_[i] = *reinterpret_cast<const Pack<V, 4>*>(next_ + pack / (extent / 4) * stride_ +
                                                        pack % (extent / 4) * 4);
    }
    next_ += tile_depth * stride_;
  }

  __device__ void put(Slab<V, extent>& slab) const {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int pack = threadIdx.x + i * Tile::threads;
      if (packs % Tile::threads == 0 || pack < packs)
        *reinterpret_cast<Pack<V, 4>*>(&slab.at[pack / (extent / 4)][pack % (extent / 4) * 4]) =
            held_[i];
    }
  }

 private:
  const V* next_;
  std::int64_t stride_;
  Pack<V, 4> held_[each];
};

// The index of a block in a grid of several dimensions, fastest first.
struct BlockIndex {
  std::int64_t left = blockIdx.x;
  __device__ int next(std::int64_t extent) {
    const std::int64_t index = left % extent;
    left /= extent;
    return static_cast<int>(index);
  }
};

// Time of a grid of tiles, in units of one multiprocessor's products: whole waves of tiles, of
// which small ones spend more on loading.
template <class Tile>
double tile_cost(std::int64_t m, std::int64_t n, std::int64_t batches, std::int64_t at_once) {
  const std::int64_t tiles =
      divide_up<std::int64_t>(m, Tile::rows) * divide_up<std::int64_t>(n, Tile::cols) * batches;
  const double loading = 16.0 / Tile::rows + 16.0 / Tile::cols;
  return static_cast<double>(divide_up(tiles, at_once)) * Tile::rows * Tile::cols * (1 + loading);
}

// Calls f(Tile{}) with the cheapest of Tiles.
template <class... Tiles, class F>
void with_tile(std::int64_t m, std::int64_t n, std::int64_t batches, std::int64_t at_once, F f) {
  const double costs[] = {tile_cost<Tiles>(m, n, batches, at_once)...};
  const auto best = std::min_element(std::begin(costs), std::end(costs)) - costs;
  int i = 0;
  ((i++ == best ? f(Tiles{}) : void()), ...);
}

// What f64 uses, for whatever shape.
using TileForDouble = Tile<32, 32, 4, 4>;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t d) { return divide_up(n, d) * d; }

inline dim3 grid_of(std::string_view op, std::int64_t blocks) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  require(blocks <= most, Kind::limit, op, "too many blocks", blocks, most);
  return dim3(static_cast<unsigned>(blocks));
}

// How a sum over `slabs` slabs is cut: at most `wanted` slices, each of `length` slabs but the
// last.
struct Slices {
  std::int64_t count;
  std::int64_t length;
  Slices(std::int64_t slabs, std::int64_t wanted) {
    constexpr std::int64_t shortest = 8;  // slabs: below, starting up costs more than it gains
    wanted = std::max<std::int64_t>(1, std::min(wanted, slabs / shortest));
    length = std::max<std::int64_t>(1, divide_up(slabs, wanted));
    count = std::max<std::int64_t>(1, divide_up(slabs, length));
  }
};

// Blocks of FmaCore that share a multiprocessor, and so how many registers they have.
template <class Tile>
inline constexpr int blocks_resident = (Tile::threads > 128 ? 512 : 384) / Tile::threads;

// Blocks that keep every multiprocessor at 256 threads.
template <class Tile>
std::int64_t enough_blocks() {
  return std::int64_t{multiprocessors()} * (256 / Tile::threads);
}

// The second stage: y[i] = bias + Σ over slices of partial[slice, i], in a fixed order. Each of 8
// rows of threads adds every eighth slice.
template <class T>
__global__ void add_slices(std::int64_t size, std::int64_t slices, const Compute<T>* partial,
                           std::int64_t plane, std::int64_t channels, const T* bias, T* y) {
  __shared__ Compute<T> sums[8][32];
  const std::int64_t i = std::int64_t{blockIdx.x} * 32 + threadIdx.x;
  Compute<T> sum = 0;
  if (i < size) {
#pragma unroll 4
    for (std::int64_t slice = threadIdx.y; slice < slices; slice += 8)
      sum += partial[slice * size + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= size) return;
  for (int row = 1; row < 8; ++row) sum += sums[row][threadIdx.x];
  y[i] = narrow<T>(bias ? sum + widen(bias[i / plane % channels]) : sum);
}

template <class T>
void launch_add_slices(std::string_view op, std::int64_t size, std::int64_t slices,
                       const Tensor& partial, std::int64_t plane, std::int64_t channels,
                       const T* bias, Tensor& y) {
  launch(op, add_slices<T>, grid_of(op, divide_up<std::int64_t>(size, 32)), dim3(32, 8), 0, size,
         slices, partial.data<Compute<T>>(), plane, channels, bias, y.data<T>());
}

}  // namespace ebb::gpu
