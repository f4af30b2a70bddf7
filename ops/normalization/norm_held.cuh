// Internal: not in <ebb/ebb.h>, not installed.
// Few long rows on a GPU that keeps much of them between two passes: the first finds sums of each
// row, the second goes back over the same elements when all sums are there.
//
// The columns are dealt to blocks that run all at once, one a multiprocessor; each goes over its
// part of every row, waits for the others, and goes back. The first of the packs that a thread
// meets stay in its registers, the next ones in shared memory, and of the last ones, which come
// first on the way back, many are still in the cache. A column has one owner, so that its sums over
// the rows, dw and db, are found on the way, and its weight is read once.
#pragma once
#include <cuda_pipeline.h>

#include "ebb/ops/normalization/norm_rows.cuh"
#include "ebb/ops/together.cuh"

namespace ebb::gpu {

inline constexpr int dealt_threads = 512;
inline constexpr int dealt_blocks =
    132;                         // of every GPU that has them, so that all add in one order
inline constexpr int strip = 8;  // elements that a thread takes at a time
inline constexpr int most_held_rows = 64;  // dw of more would add up too many in f32

// Threads are `across` packs of a row by `along` rows; after the rows come the next packs.
struct Deal {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t strips;  // of a row
  int across;
  int turns;  // rows of a thread
  int items;  // packs of a thread, whether they are there or not

  explicit Deal(const NormRows& s) : rows(s.rows), cols(s.cols), strips(s.cols / strip) {
    across = warp_size;
    while (across < dealt_threads && across * dealt_blocks < strips) across *= 2;
    turns = static_cast<int>(divide_up<std::int64_t>(rows, dealt_threads / across));
    items = turns * static_cast<int>(divide_up<std::int64_t>(strips, across * dealt_blocks));
  }
};

// Which strip a thread is at: a row's next 256 elements are a warp's, whose lanes take turns by
// packs of `width` of them.
template <int width>
class Walk {
 public:
  __device__ explicit Walk(const Deal& d)
      : cols_(d.cols),
        row_step_(dealt_threads / d.across * d.cols),
        rows_(static_cast<int>(d.rows)),
        across_(d.across),
        end_(d.turns * (dealt_threads / d.across)),
        first_(static_cast<int>(threadIdx.x) / d.across),
        row_(first_) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    const int warp = static_cast<int>(threadIdx.x) % d.across - lane;
    column_ = (static_cast<std::int64_t>(blockIdx.x) * d.across + warp) * strip + lane * width;
    place_ = row_ * cols_ + column_;
  }
  __device__ int row() const { return row_; }
  __device__ bool has_row() const { return row_ < rows_; }
  __device__ bool at_first_row() const { return row_ == first_; }
  __device__ bool at_last_row() const { return row_ + along() >= end_; }
  // Of pack k.
  __device__ std::int64_t column(int k) const { return column_ + k * (warp_size * width); }
  __device__ std::int64_t place(int k) const { return place_ + k * (warp_size * width); }
  __device__ bool has_column(int k) const { return column(k) < cols_; }
  __device__ bool inside(int k) const { return has_row() && has_column(k); }
  // Elements of the row that the lanes of this warp have.
  __device__ int of_warp() const {
    const std::int64_t left = cols_ - (column_ - threadIdx.x % warp_size * width);
    if (!has_row() || left <= 0) return 0;
    return left < warp_size * strip ? static_cast<int>(left) : warp_size * strip;
  }
  __device__ void forward() {
    row_ += along();
    place_ += row_step_;
    if (row_ >= end_) step(-end_, 1);
  }
  __device__ void back() {
    row_ -= along();
    place_ -= row_step_;
    if (row_ < 0) step(end_, -1);
  }
  __device__ void forward(int items) {
    const int turns = end_ / along();
    const int lines = items / turns;
    step((items - lines * turns) * along(), lines);
  }

 private:
  __device__ int along() const { return dealt_threads / across_; }
  __device__ void step(int rows, int lines) {
    const std::int64_t n = static_cast<std::int64_t>(lines) * dealt_blocks * across_ * strip;
    row_ += rows;
    column_ += n;
    place_ += rows * cols_ + n;
  }

  std::int64_t cols_, row_step_;
  int rows_, across_, end_, first_, row_;
  std::int64_t column_, place_;
};

// A thread's packs of `inputs` tensors: `kept` in registers, `stored` in shared memory. They are
// met in groups, whose sums are found together.
template <class T, int inputs_, int kept, int stored>
class HeldPacks {
 public:
  static constexpr int inputs = inputs_;
  static constexpr int width = pack_size<T>;
  static constexpr int parts = strip / width;  // packs of a strip
  static constexpr int group = 4 / inputs / parts;
  static constexpr int bytes = stored * inputs * parts * dealt_threads * 16;
  static constexpr int waits = 3;
  static_assert(kept % group == 0 && stored % (waits * group) == 0);
  using P = Pack<T, width>;
  using W = Walk<width>;
  struct Item {
    P of[inputs][parts];
    __device__ Compute<T> operator()(int q, int j) const {
      return widen(of[q][j / width], j % width);
    }
  };

  __device__ HeldPacks(const Deal& deal, unsigned char* memory, const T* const (&x)[inputs])
      : start_(deal), items_(deal.items), memory_(reinterpret_cast<P*>(memory) + threadIdx.x) {
#pragma unroll
    for (int q = 0; q < inputs; ++q) x_[q] = x[q];
  }

  // f(walk, items) for each group, in order; f walks on.
  template <class F>
  __device__ void there(F f) {
    W walk = start_;
    W far = walk;
#pragma unroll
    for (int i = 0; i < kept; ++i, far.forward()) load(kept_[i / group][i % group], far);
#pragma unroll 1
    for (int s = 0; s < stored; ++s, far.forward()) {
#pragma unroll
      for (int q = 0; q < inputs; ++q)
#pragma unroll
        for (int k = 0; k < parts; ++k) {
          const bool inside = far.inside(k);  // zeros if not
          __pipeline_memcpy_async(slot(s, q, k), x_[q] + (inside ? far.place(k) : 0), sizeof(P),
                                  inside ? 0 : sizeof(P));
        }
      if ((s + 1) % (stored / waits) == 0) __pipeline_commit();
    }
#pragma unroll
    for (int i = 0; i < kept; i += group) f(walk, kept_[i / group]);
    Item next[group];
#pragma unroll
    for (int w = 0; w < waits; ++w) {
      if (w == waits - 1)
#pragma unroll
        for (int u = 0; u < group; ++u, far.forward()) load(next[u], far);
      __pipeline_wait_prior(waits - 1 - w);
#pragma unroll 1
      for (int s = w * (stored / waits); s < (w + 1) * (stored / waits); s += group) {
        if (kept + s >= items_) break;
        Item items[group];
#pragma unroll
        for (int u = 0; u < group; ++u) items[u] = stored_item(s + u);
        f(walk, items);
      }
    }
#pragma unroll 1
    for (int i = kept + stored; i < items_; i += group) {
      Item now[group];
#pragma unroll
      for (int u = 0; u < group; ++u) now[u] = next[u];
#pragma unroll
      for (int u = 0; u < group; ++u, far.forward()) load(next[u], far);
      f(walk, now);
    }
  }

  // f(walk, item) for each, backwards.
  template <class F>
  __device__ void back(F f) {
    W walk = start_;
    walk.forward(items_ - 1);
    W near = walk;
    Item next[group];
    int i = items_ - 1;
    const auto load_next = [&](int i) {
#pragma unroll
      for (int u = 0; u < group; ++u, near.back())
        if (i - u >= kept + stored) load(next[u], near);
    };
    load_next(i);
#pragma unroll 1
    for (; i >= kept + stored; i -= group) {
      Item now[group];
#pragma unroll
      for (int u = 0; u < group; ++u) now[u] = next[u];
      load_next(i - group);
#pragma unroll
      for (int u = 0; u < group; ++u) {
        if (i - u < kept + stored) continue;
        f(walk, now[u]);
        walk.back();
      }
    }
#pragma unroll 1
    for (int s = (items_ < kept + stored ? items_ : kept + stored) - 1 - kept; s >= 0; --s) {
      f(walk, stored_item(s));
      walk.back();
    }
#pragma unroll
    for (int k = kept - 1; k >= 0; --k) {
      if (k >= items_) continue;
      f(walk, kept_[k / group][k % group]);
      walk.back();
    }
  }

 private:
  __device__ P* slot(int s, int q, int k) const {
    return memory_ + ((s * inputs + q) * parts + k) * dealt_threads;
  }
  __device__ void load(Item& item, const W& walk) const {
#pragma unroll
    for (int q = 0; q < inputs; ++q)
#pragma unroll
      for (int k = 0; k < parts; ++k)
        item.of[q][k] = load_if<width>(walk.inside(k), x_[q] + walk.place(k));
  }
  __device__ Item stored_item(int s) const {
    Item item;
#pragma unroll
    for (int q = 0; q < inputs; ++q)
#pragma unroll
      for (int k = 0; k < parts; ++k) item.of[q][k] = load_if<width>(true, slot(s, q, k)->v);
    return item;
  }

  W start_;
  int items_;
  P* memory_;
  const T* x_[inputs];
  Item kept_[kept / group][group];
};

using RowPairs = double2[most_held_rows][dealt_threads / warp_size];  // by warps that share a row

// v, pairs of this lane for each of `group` rows, added up over the warp: take(u, pair) in one lane
// for each u, at once or `in_turn`. Halves of the warp exchange halves of the numbers, then
// quarters.
template <int group, class Take>
__device__ void add_lanes(float (&v)[2 * group], bool in_turn, const Take& take) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  int offset = warp_size / 2;
#pragma unroll
  for (int n = group; n >= 1; n /= 2, offset /= 2)
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool upper = lane & offset;
      const float send = upper ? v[i] : v[i + n];
      v[i] = (upper ? v[i + n] : v[i]) + __shfl_xor_sync(0xffffffffu, send, offset);
    }
#pragma unroll
  for (; offset >= 1; offset /= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], offset);
  constexpr int lanes = warp_size / (2 * group);  // that have the same number
  const float other = __shfl_xor_sync(0xffffffffu, v[0], lanes);
  const int mine = lane / (2 * lanes);
  const bool first = lane % (2 * lanes) == 0;
  if (!in_turn) {
    if (first) take(mine, v[0], other);
    __syncwarp();  // another lane may have the row next time
    return;
  }
  for (int u = 0; u < group; ++u) {
    if (first && mine == u) take(u, v[0], other);
    __syncwarp();
  }
}

// v[i], by choices: the array stays in registers.
template <class V, int n>
__device__ V choose(const V (&v)[n], int i) {
  V chosen = v[0];
#pragma unroll
  for (int k = 1; k < n; ++k)
    if (k == i) chosen = v[k];
  return chosen;
}

// Σ of what each warp has found of each row, over all blocks: total(row) is called in one thread a
// row, of every block. All blocks meet here.
template <class F>
__device__ void add_blocks(const Deal& d, const RowPairs& found, double2* partial, F total) {
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < d.rows) {
    double2 sum = found[row][0];
    for (int w = 1; w < d.across / warp_size; ++w) {
      sum.x += found[row][w].x;
      sum.y += found[row][w].y;
    }
    partial[row * dealt_blocks + blockIdx.x] = sum;
  }
  cooperative_groups::this_grid().sync();
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int r = static_cast<int>(threadIdx.x) / warp_size; r < d.rows;
       r += dealt_threads / warp_size) {
    double2 sum{0, 0};
#pragma unroll
    for (int b = lane; b < dealt_blocks; b += warp_size) {
      const double2 of = __ldcg(&partial[r * dealt_blocks + b]);
      sum.x += of.x;
      sum.y += of.y;
    }
    sum.x = warp_reduce(sum.x, Sum{});
    sum.y = warp_reduce(sum.y, Sum{});
    if (lane == 0) total(r, sum);
  }
  __syncthreads();
}

}  // namespace ebb::gpu
