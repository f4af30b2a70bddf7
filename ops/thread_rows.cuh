// Rows of a few elements on the GPU, for the bodies of rows.cuh: of a group of threads most would
// have none. A block moves its rows between memory and shared memory by whole packs, and every
// thread runs the body on rows of its own.
#pragma once
#include <algorithm>

#include "ebb/ops/packs.cuh"
#include "ebb/ops/row_steps.cuh"

namespace ebb::gpu {

inline constexpr int thread_row_threads = 128;

// What is so short, and enough for every multiprocessor to have some, is faster by a thread a row.
template <class T>
bool are_thread_rows(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t longest = sizeof(T) == 8 ? 8 : sizeof(T) == 4 ? 12 : 16;
  return cols <= longest && rows * cols >= std::int64_t{1} << 20;
}

// The rows of a block in shared memory, an odd number of elements apart, for the banks.
template <class T>
struct ThreadRows {
  static constexpr int width = pack_size<T>;
  T* at;

  // f(element of the tile, how many) for each pack that this thread moves of rows first … first +
  // count; the last one may be short.
  template <class F>
  __device__ static void packs(int first, int count, int cols, F f) {
    for (int i = first * cols + threadIdx.x * width; i < (first + count) * cols;
         i += thread_row_threads * width)
      f(i, min(width, (first + count) * cols - i));
  }
  // Where an element of the tile lies, and then the next ones: behind a row's end is a gap or none.
  struct Place {
    int cols, column, at;
    __device__ Place(int element, int cols)
        : cols(cols), column(element % cols), at(element / cols * (cols | 1) + column) {}
    __device__ void step() {
      ++at;
      if (++column < cols) return;
      at += (cols | 1) - cols;
      column = 0;
    }
  };

  __device__ void load(const T* x, int count, int cols) const {
    packs(0, count, cols, [&](int i, int there) {
      Pack<T, width> pack;
      if (there == width) pack = load_if<width>(true, x + i);
      Place place(i, cols);
#pragma unroll
      for (int j = 0; j < width; ++j, place.step())
        if (j < there) at[place.at] = there == width ? pack.v[j] : x[i + j];
    });
  }
  __device__ void store(T* y, int first, int count, int cols) const {
    packs(first, count, cols, [&](int i, int there) {
      Pack<T, width> pack;
      Place place(i, cols);
#pragma unroll
      for (int j = 0; j < width; ++j, place.step())
        if (j < there) pack.v[j] = at[place.at];
      if (there == width) return gpu::store(reinterpret_cast<Pack<T, width>*>(y + i), pack);
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (j < there) y[i + j] = pack.v[j];
    });
  }
};

// Threads beyond the last row have an empty one.
template <class T, int inputs>
class ThreadRow : public RowSteps<ThreadRow<T, inputs>, T, Compute<T>> {
 public:
  // Row `first` + threadIdx.x of the `count` in the tiles, which begin at row `tile_row` of all.
  __device__ ThreadRow(const ThreadRows<T> (&tiles)[inputs], std::int64_t tile_row, int first,
                       int count, int cols)
      : tiles_(tiles), tile_row_(tile_row), first_(first), count_(count), cols_(cols) {}

  __device__ std::int64_t index() const { return tile_row_ + (leader() ? slot() : 0); }
  __device__ bool leader() const { return slot() < count_; }

  template <class F>
  __device__ void windows(F f) {
    f([&](auto g) {
      for (int k = 0; k < own_cols(); ++k) visit(k, g, std::make_index_sequence<inputs>{});
    });
  }
  template <class Op, class A>
  __device__ A reduce(Op, A a) const {
    return a;
  }
  // Once, as results take the places of the first input.
  template <class F>
  __device__ void write_packs(T* y, F pack) {
    for (int k = 0; k < own_cols(); ++k)
      visit(
          k, [&](int, auto... x) { tiles_[0].at[place(k)] = narrow<T>(pack(k)(0, k, x...)); },
          std::make_index_sequence<inputs>{});
    __syncthreads();
    tiles_[0].store(y + tile_row_ * cols_, first_, min(thread_row_threads, count_ - first_), cols_);
  }

 private:
  __device__ int slot() const { return first_ + static_cast<int>(threadIdx.x); }
  __device__ int own_cols() const { return leader() ? cols_ : 0; }
  __device__ int place(int k) const { return slot() * (cols_ | 1) + k; }
  template <class F, size_t... I>
  __device__ void visit(int k, F f, std::index_sequence<I...>) const {
    f(k, widen(tiles_[I].at[place(k)])...);
  }

  const ThreadRows<T> (&tiles_)[inputs];
  std::int64_t tile_row_;
  int first_, count_, cols_;
};

template <class T, class Body, class... X>
__global__ void __launch_bounds__(thread_row_threads)
    thread_rows_kernel(Body body, std::int64_t rows, int cols, int each, const X*... x) {
  constexpr int inputs = sizeof...(X);
  extern __shared__ __align__(16) unsigned char thread_rows_memory[];
  const int most = each * thread_row_threads;
  const std::int64_t tile_row = std::int64_t{blockIdx.x} * most;
  const std::int64_t left = rows - tile_row;
  const int count = left < most ? static_cast<int>(left) : most;
  ThreadRows<T> tiles[inputs];
  for (int i = 0; i < inputs; ++i)
    tiles[i].at = reinterpret_cast<T*>(thread_rows_memory) + i * most * (cols | 1);
  int i = 0;
  (tiles[i++].load(x + tile_row * cols, count, cols), ...);
  __syncthreads();
  for (int first = 0; first < count; first += thread_row_threads) {
    ThreadRow<T, inputs> row(tiles, tile_row, first, count, cols);
    body(row);
  }
}

// Of rows of a few elements a thread has several.
template <class T, class Body, class... X>
void thread_rows(std::string_view op, const Body& body, std::int64_t rows, std::int64_t cols,
                 const X*... x) {
  const int each = std::max(1, 8 / std::max(1, static_cast<int>(cols)));
  const int most = each * thread_row_threads;
  const size_t memory = sizeof...(X) * most * (cols | 1) * sizeof(T);
  launch(op, thread_rows_kernel<T, Body, X...>,
         dim3(static_cast<unsigned>(divide_up<std::int64_t>(rows, most))), thread_row_threads,
         memory, body, rows, static_cast<int>(cols), each, x...);
}

}  // namespace ebb::gpu
