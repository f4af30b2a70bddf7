// Long rows on Hopper, each read once: the blocks of a cluster have a slice of the row each, in
// shared memory, and add up what they found through it.
//
// A block stays for many rows. The chunks of its slices come, in order, into a ring by bulk copies;
// the steps of a body (rows.cuh) go over the chunks of a row as often as they like, and write(),
// the last step, makes room for chunks of the next row with each that all warps have read. So reads
// and writes overlap, within a block and between the two that a multiprocessor has where slices are
// short enough. Between chunks no warp waits for the others.
//
// Rows may begin anywhere: a chunk is of whole packs of 16 bytes, and what its first and last pack
// have of other rows is passed over.
//
//   if (long_rows<T>(op, body, rows, cols, x…)) return;      false: it cannot, nothing is done
#pragma once
#include <algorithm>

#include "ebb/ops/exchange.cuh"
#include "ebb/ops/rows.cuh"

namespace ebb::gpu {

inline constexpr std::int64_t long_row_bytes = 65536;  // shorter rows fit a block's registers
inline constexpr int long_memory = 14 * 16384;  // of a block's ring, alone on its multiprocessor
inline constexpr int long_memory_of_two = 6 * 16384;

struct LongRows {
  std::int64_t rows;
  std::int64_t cols;
  int blocks = 1;  // of a row
  int slice = 0;   // packs of a block
  int chunks = 0;  // of a slice
  int slots = 0;   // chunks in the ring, as many as those of a slice or more
};

// The row that a cluster is at; a Row as in rows.cuh.
template <class T, int inputs, int threads, bool packed_>
class LongRow : public RowSteps<LongRow<T, inputs, threads, packed_>, T> {
 public:
  using C = Compute<T>;
  static constexpr bool packed = packed_;
  static constexpr int width = pack_size<T>;
  static_assert(inputs <= 2);
  static constexpr int per_thread = threads == 1024 ? 1 : 2 / inputs;  // packs in a chunk
  static constexpr int chunk = per_thread * threads;
  static constexpr int slot_bytes = inputs * chunk * 16;
  static constexpr int most_slots = long_memory / slot_bytes;
  using P = Pack<T, width>;
  struct Shared {
    hopper::Barrier full[most_slots], empty[most_slots];
    double of_warps[2][threads / warp_size];
    Exchange<1> of_blocks;
  };

  __device__ LongRow(const LongRows& s, unsigned char* memory, Shared& shared,
                     const T* const (&x)[inputs])
      : s_(s),
        memory_(reinterpret_cast<Words*>(memory)),
        shared_(shared),
        rank_(static_cast<int>(blockIdx.x) % s.blocks),
        step_(static_cast<int>(gridDim.x) / s.blocks),
        index_(blockIdx.x / s.blocks) {
#pragma unroll
    for (int i = 0; i < inputs; ++i) x_[i] = x[i];
    here_ = slice_of(index_);
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < s.slots; ++slot) {
        shared.full[slot].init(1);
        shared.empty[slot].init(threads / warp_size);
      }
      shared.of_blocks.init();
      hopper::show_barriers();
      for (int slot = 0; slot < s.slots; ++slot) fetch(slot, slot);
    }
    meet(s.blocks);
  }
  __device__ bool there() const { return index_ < s_.rows; }
  __device__ void next() {
    index_ += step_;
    here_ = slice_of(index_);
  }

  __device__ std::int64_t index() const { return index_; }
  __device__ bool leader() const { return rank_ == 0 && threadIdx.x == 0; }

  // As a Row's.
  template <class F>
  __device__ void windows(F f) {
    Place at = at_;
    for (int first = 0; first < here_.count; first += chunk, step(at)) {
      Words w[inputs][per_thread];
      load(w, at, first);
      f([&](auto g) {
#pragma unroll
        for (int k = 0; k < per_thread; ++k)
          visit(w, k, first, [&](int, int col, auto... x) { g(col, x...); });
      });
    }
  }

  template <class Op, class A>
  __device__ A reduce(Op op, A a) {
    constexpr int warps = threads / warp_size;
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    const int n = reduced_++;
    double(&of_warps)[warps] = shared_.of_warps[n % 2];  // all have read what was there before
    a = warp_reduce(a, op);
    if (lane == 0) of_warps[threadIdx.x / warp_size] = static_cast<double>(a);
    __syncthreads();
    a = warp_reduce<warps>(static_cast<A>(of_warps[lane % warps]), op);
    if (s_.blocks == 1) return a;
    const std::uint64_t mine[] = {__builtin_bit_cast(std::uint64_t, static_cast<double>(a))};
    const auto* const all =
        shared_.of_blocks.of_all(n, s_.blocks, rank_, static_cast<int>(threadIdx.x), mine);
    a = static_cast<A>(__builtin_bit_cast(double, all[lane & (s_.blocks - 1)][0]));
    for (int offset = 1; offset < s_.blocks; offset *= 2)
      a = op(a, __shfl_xor_sync(0xffffffffu, a, offset));
    return a;
  }

  // The last step. Warps take turns to fetch what comes in the place of a chunk that all have read.
  template <class F>
  __device__ void write_packs(T* y, F pack) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    for (int c = 0; c < s_.chunks; ++c, step(at_)) {
      const int first = c * chunk;
      Words w[inputs][per_thread];
      load(w, at_, first);
      __syncwarp();
      if (lane == 0) shared_.empty[at_.slot].arrive();
#pragma unroll
      for (int k = 0; k < per_thread; ++k)
        if (pack_of(k, first) < here_.count) write_pack(y, w, k, first, pack);
      if (warp == c % (threads / warp_size) && lane == 0) {
        shared_.empty[at_.slot].wait(at_.phase);
        fetch(c + s_.slots, at_.slot);
      }
      __syncwarp();
    }
  }

 private:
  struct Place {
    int slot = 0;
    int phase = 0;
  };
  struct Slice {
    std::int64_t first;  // pack of the tensor
    int count;           // packs
    int column;          // of the first
  };

  __device__ void step(Place& at) const {
    if (++at.slot < s_.slots) return;
    at.slot = 0;
    at.phase ^= 1;
  }
  // Of this block.
  __device__ Slice slice_of(std::int64_t row) const {
    const std::int64_t begin = row * s_.cols / width;
    const std::int64_t end = (row * s_.cols + s_.cols + width - 1) / width;
    const std::int64_t first = begin + std::int64_t{rank_} * s_.slice;
    const std::int64_t left = end - first;
    return {first,
            static_cast<int>(left < 0          ? 0
                             : left < s_.slice ? left
                                               : s_.slice),
            static_cast<int>(first * width - row * s_.cols)};
  }

  __device__ Words* memory(int slot, int input) const {
    return memory_ + (slot * inputs + input) * chunk;
  }
  // Begins to copy chunk c, counted from the first one of this row on, if there is one.
  __device__ void fetch(int c, int slot) {
    std::int64_t row = index_;
    for (; c >= s_.chunks; c -= s_.chunks) row += step_;
    if (row >= s_.rows) return;
    const Slice slice = slice_of(row);
    const int first = c * chunk;
    const std::int64_t from = slice.first + first;
    std::int64_t n = slice.count - first < chunk ? slice.count - first : chunk;
    const std::int64_t all = s_.rows * s_.cols / width;
    if (!packed && n > all - from) n = all - from;  // no pack beyond the tensor's end
    const int bytes = n > 0 ? static_cast<int>(n) * 16 : 0;
    hopper::Barrier& full = shared_.full[slot];
    full.arrive_expecting(inputs * bytes);
    if (bytes == 0) return;
#pragma unroll
    for (int i = 0; i < inputs; ++i)
      hopper::copy_passing(memory(slot, i), x_[i] + from * width, bytes, full);
  }

  // Of the slice.
  __device__ static int pack_of(int k, int first) {
    return first + k * threads + static_cast<int>(threadIdx.x);
  }
  __device__ void load(Words (&w)[inputs][per_thread], const Place& at, int first) const {
    shared_.full[at.slot].wait(at.phase);
#pragma unroll
    for (int i = 0; i < inputs; ++i)
#pragma unroll
      for (int k = 0; k < per_thread; ++k) {
        const int p = pack_of(k, first);
        if (p >= here_.count) continue;
        w[i][k] = memory(at.slot, i)[p - first];
        if constexpr (!packed) {
          const std::int64_t left = s_.rows * s_.cols - (here_.first + p) * width;
          if (left < width) w[i][k] = last_pack(x_[i], left);
        }
      }
  }
  // Of a tensor that ends within it.
  __device__ Words last_pack(const T* x, std::int64_t left) const {
    P pack{};
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (j < left) pack.v[j] = x[s_.rows * s_.cols - left + j];
    return __builtin_bit_cast(Words, pack);
  }

  __device__ bool has(int column) const { return packed || (column >= 0 && column < s_.cols); }
  template <class F>
  __device__ void write_pack(T* y, const Words (&w)[inputs][per_thread], int k, int first,
                             F& pack) const {
    const int p = pack_of(k, first);
    const int column = here_.column + p * width;
    const auto f = pack(column);
    C out[width] = {};
    visit(w, k, first, [&](int j, int col, auto... x) { out[j] = f(j, col, x...); });
    T* const to = y + (here_.first + p) * width;
    const P whole = narrow<T>(out);
    if (has(column) && has(column + width - 1))
      gpu::store(reinterpret_cast<P*>(to), whole);
    else
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (has(column + j)) to[j] = whole.v[j];
  }

  // f(j, column, x…) on the row's elements of pack k.
  template <class F>
  __device__ void visit(const Words (&w)[inputs][per_thread], int k, int first, F f) const {
    visit(w, k, first, f, std::make_index_sequence<inputs>{});
  }
  template <class F, size_t... I>
  __device__ void visit(const Words (&w)[inputs][per_thread], int k, int first, F f,
                        std::index_sequence<I...>) const {
    const int p = pack_of(k, first);
    if (p >= here_.count) return;
    const int column = here_.column + p * width;
    if (has(column) && has(column + width - 1))
#pragma unroll
      for (int j = 0; j < width; ++j) f(j, column + j, element<T>(w[I][k], j)...);
    else if constexpr (!packed)
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (has(column + j)) f(j, column + j, element<T>(w[I][k], j)...);
  }

  const LongRows& s_;
  Words* memory_;
  Shared& shared_;
  const T* x_[inputs];
  int rank_;
  int step_;  // rows
  std::int64_t index_;
  Slice here_;
  Place at_;
  int reduced_ = 0;  // times
};

template <class T, int threads, bool packed, class Body, class... X>
__global__ void __launch_bounds__(threads, 1024 / threads)
    long_rows_kernel(Body body, const __grid_constant__ LongRows s, const X*... x) {
#if __CUDA_ARCH__ >= 900
  using Row = LongRow<T, sizeof...(X), threads, packed>;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ typename Row::Shared shared;
  const T* const from[] = {x...};
  Row row(s, memory, shared, from);
  for (; row.there(); row.next()) body(row);
#endif
}

template <class T, int threads, bool packed, class Body, class... X>
bool launch_long_rows(std::string_view op, const Body& body, LongRows s, int memory,
                      const X*... x) {
  constexpr auto kernel = long_rows_kernel<T, threads, packed, Body, X...>;
  using Row = LongRow<T, sizeof...(X), threads, packed>;
  s.chunks = divide_up(s.slice, Row::chunk);
  s.slots = memory / Row::slot_bytes;
  const auto blocks = static_cast<unsigned>(s.blocks);
  Together together{blocks, threads, static_cast<size_t>(s.slots) * Row::slot_bytes, blocks};
  if (s.chunks > s.slots || !hopper::has_barriers<kernel>(op)) return false;
  const int clusters = clusters_at_a_time<kernel>(op, together);
  if (clusters == 0) return false;
  together.grid.x *= static_cast<unsigned>(std::min<std::int64_t>(s.rows, clusters));
  launch_together(op, kernel, together, body, s, x...);
  return true;
}

// Two blocks a multiprocessor where slices of 64 KB are enough, one of twice the threads otherwise.
// That also for f32 of nearly twice 128 KB: clusters of two leave no multiprocessor out.
template <class T, bool packed, class Body, class... X>
bool long_rows_as(std::string_view op, const Body& body, LongRows s, const X*... x) {
  const std::int64_t elements = packed ? s.cols : s.cols + pack_size<T> - 1;
  const std::int64_t packs = divide_up<std::int64_t>(elements, pack_size<T>);
  constexpr std::int64_t slice = 4096;
  const bool halves =
      packed && sizeof(T) == 4 && sizeof...(X) == 1 && packs > 3 * slice && packs <= 4 * slice;
  const std::int64_t most = halves ? 2 * slice : slice / sizeof...(X);
  while (s.blocks < largest_cluster &&
         (packs > s.blocks * most ||
          (packs > s.blocks * 512 && s.rows * s.blocks * 2 <= multiprocessors_used)))
    s.blocks *= 2;
  for (; s.blocks > 0; s.blocks /= 2) {  // not every GPU has room for the largest clusters
    s.slice = static_cast<int>(divide_up<std::int64_t>(packs, s.blocks));
    if (launch_long_rows<T, 512, packed>(op, body, s, long_memory_of_two, x...) ||
        launch_long_rows<T, 1024, packed>(op, body, s, long_memory, x...))
      return true;
  }
  return false;
}

template <class T, class Body, class... X>
bool long_rows(std::string_view op, const Body& body, std::int64_t rows, std::int64_t cols,
               const X*... x) {
  if (!have_clusters() || rows == 0 || cols > (std::int64_t{1} << 24)) return false;
  const LongRows s{rows, cols};
  if (cols % pack_size<T> == 0) return long_rows_as<T, true>(op, body, s, x...);
  return long_rows_as<T, false>(op, body, s, x...);
}

}  // namespace ebb::gpu
