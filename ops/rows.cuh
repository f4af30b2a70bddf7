// Row reductions with a map on the GPU: softmax, norms, sums along the last dimension.
//
// A group of threads owns a row and runs a body that is written once for every layout:
//
//   template <class T> struct Softmax {
//     T* y;
//     template <class Row> __device__ void operator()(Row& row) const {
//       const auto m = row.max([](auto, auto x) { return x; });
//       const auto s = row.sum([&](auto, auto x) { return exp(x - m); });
//       row.write(y, [&](auto, auto x) { return exp(x - m) / s; });
//     }
//   };
//   keep_rows<T>("softmax", Softmax<T>{y}, rows, cols, y, x);
//
// keep_rows    holds the row in registers between the steps (one read of memory): of a warp, of a
//              block, or of a cluster of blocks (sm_90); wider rows are read again by every step.
// stream_rows  always reads again: for bodies of one step, which need fewer threads in flight.
// strided_rows the same for [outer, n, inner] along n, neighbouring threads on neighbouring inner.
//
// Functions get (column, x, …) in Compute<T>. Sums add a window of at most 64 elements a thread in
// Compute<T>, where one of the largest numbers may overflow, and windows in double where there are
// several. All orders are fixed.
#pragma once
#include <limits>
#include <utility>

#include "ebb/ops/packs.cuh"
#include "ebb/ops/together.cuh"

namespace ebb::gpu {

// `rows` rows of `cols` elements, each cut into `slices` of `chunk`: what the engine calls a row
// is one slice. index = row · slices + slice.
struct RowLayout {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t slices = 1;
  std::int64_t chunk = cols;
};

// 16 bytes as they are loaded.
struct alignas(16) Words {
  unsigned w[4];
};

// Element j, widened.
template <class T>
__device__ Compute<T> element(const Words& x, int j) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __uint_as_float(j % 2 == 0 ? x.w[j / 2] << 16 : x.w[j / 2] & 0xffff0000u);
  } else {
    return __builtin_bit_cast(Pack<T, pack_size<T>>, x).v[j];
  }
}

// Makes the compiler believe that the packs changed: it would keep what it widened in a step for
// the next one, in twice the registers.
template <int inputs, int packs>
__device__ void forget_widened(Words (&window)[inputs][packs]) {
#pragma unroll
  for (int i = 0; i < inputs; ++i)
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      unsigned(&w)[4] = window[i][k].w;
      asm volatile("" : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3]));
    }
}

// The same of a number that it would find again for each pack, between whose loads that would
// stand.
template <class I>
__device__ void keep(I& x) {
  if constexpr (sizeof(I) == 4)
    asm volatile("" : "+r"(x));
  else
    asm volatile("" : "+l"(x));
}

constexpr int row_threads(int group) { return group < 64 ? 128 : group; }  // of a block

// Where a row is between the steps of a body: in the registers of a group of threads, each slice
// in those of a block of a cluster, or in memory. `passing` as in load(): by_group, and then gone.
enum class Held { by_group, passing, by_cluster, nowhere };

// `packed` rows begin at 16 bytes and are a multiple of that long. Others are seen from the last
// multiple of 16 bytes before them on, and what their first and last pack have of other rows is
// passed over.
template <class T, int inputs, int group, int packs, Held held, bool packed_>
class Row {
 public:
  using C = Compute<T>;
  static constexpr bool packed = packed_;
  static constexpr bool in_registers = held != Held::nowhere;
  using Wide = std::conditional_t<in_registers, C, double>;  // what windows are added in
  using Index = std::conditional_t<in_registers, int, std::int64_t>;

  // Threads beyond the last row get an empty one: they take part in reductions and write nothing.
  __device__ Row(const RowLayout& layout, const T* const (&x)[inputs])
      : lane_(threadIdx.x % group) {
    const std::int64_t slot =
        static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group;
    const bool inside = slot < layout.rows * layout.slices;
    const std::int64_t slice = inside ? slot : 0;
    const std::int64_t row = layout.slices == 1 ? slice : slice / layout.slices;
    const std::int64_t first = (slice - row * layout.slices) * layout.chunk;
    const std::int64_t rest = layout.cols - first;
    index_ = held == Held::by_cluster ? row : slice;
    offset_ = row * layout.cols + first;
    first_ = held == Held::by_cluster ? static_cast<Index>(first) : 0;
    before_ = packed ? 0 : static_cast<int>(offset_ % width);
    end_ = inside ? static_cast<Index>(rest < layout.chunk ? rest : layout.chunk) + before_ : 0;
    keep(end_);
    leader_ = inside && lane_ == 0 && (held != Held::by_cluster || first == 0);
    const std::int64_t all = layout.rows * layout.cols - (offset_ - before_);
    whole_ = all - end_ < width ? static_cast<Index>(all / width * width) : end_ + width;
#pragma unroll
    for (int i = 0; i < inputs; ++i) x_[i] = x[i] + (offset_ - before_);
    if constexpr (in_registers) load(window_, 0, end_);
  }

  __device__ std::int64_t index() const { return index_; }
  __device__ bool leader() const { return leader_; }  // the one thread that writes a row's scalars

  // f(visit) for each window, where visit(g) calls g(column, x…) for each element of this thread.
  template <class F>
  __device__ void windows(F f) {
    each_window([&](const Window& w, Index start, int left) {
      f([&](auto g) {
#pragma unroll
        for (int k = 0; k < packs; ++k)
          visit(w, k, start, left, [&](int, Index col, auto... x) { g(col, x...); });
      });
    });
  }

  // f(column, x…) for each element this thread sees.
  template <class F>
  __device__ void each(F f) {
    windows([&](auto visit) { visit(f); });
  }

  template <class Op, class A>
  __device__ A reduce(Op op, A a) const {
    if constexpr (group <= warp_size) {
      return warp_reduce<group>(a, op);
    } else {
      a = block_reduce<group>(a, op);
      if constexpr (held == Held::by_cluster) a = cluster_reduce(a, op);
      return a;
    }
  }

  template <class F>
  __device__ C max(F f) {
    C m = -std::numeric_limits<C>::infinity();
    each([&](Index col, auto... x) { m = Max{}(f(col, x...), m); });
    return reduce(Max{}, m);
  }

  template <class Total = C, class F>
  __device__ Total sum(F f) {
    using A = std::conditional_t<std::is_same_v<Total, double>, double, Wide>;
    A total = 0;
    windows([&](auto visit) {
      C part = 0;
      visit([&](Index col, auto... x) { part += f(col, x...); });
      total += part;
    });
    return static_cast<Total>(reduce(Sum{}, total));
  }

  // y[row, column] = f(column, x…)
  template <class F>
  __device__ void write(T* y, F f) {
    write_packs(y, [&](Index) { return [&](int, Index col, auto... x) { return f(col, x...); }; });
  }
  // The same with pack(first column)(j, column, x…), where j counts elements of a pack. The first
  // column of a row that is not `packed` may be less than 0.
  template <class F>
  __device__ void write_packs(T* y, F pack) {
    each_window([&](const Window& w, Index start, int left) {
      T* const to = y + (offset_ - before_) + start;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        if (at(k, 0) >= left) continue;
        const auto f = pack(column(start) + at(k, 0));
        P out{};
        visit(w, k, start, left,
              [&](int j, Index col, auto... x) { out.v[j] = narrow<T>(f(j, col, x...)); });
        store(out, k, to, start, left);
      }
    });
  }

 private:
  static constexpr int width = pack_size<T>;
  static constexpr int window = group * width * packs;
  using P = Pack<T, width>;
  using Window = Words[inputs][packs];

  // Place in its window of element j of pack k.
  __device__ int at(int k, int j) const { return k * (group * width) + lane_ * width + j; }
  // Of the first place of a window.
  __device__ Index column(Index start) const { return first_ - before_ + start; }
  // Whether that place belongs to the row.
  __device__ bool has(int k, int j, Index start, int left) const {
    return packed || (at(k, j) < left && start + at(k, j) >= before_);
  }
  // Whether packs may be loaded from there, or stored.
  __device__ bool can_pack(const T* p) const {
    return packed || reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
  }

  // Of a window that begins at place `start` and has `left` elements.
  __device__ void load(Window& w, Index start, int left) const {
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      const T* const x = x_[i] + start;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        if constexpr (packed) {
          if (at(k, 0) < left)
            w[i][k] =
                gpu::load<held == Held::passing>(reinterpret_cast<const Words*>(x + at(k, 0)));
        } else if (at(k, 0) < left) {
          w[i][k] = load_pack(x, k, start, left);
        }
      }
    }
  }
  // Of a row that is not packed.
  __device__ Words load_pack(const T* x, int k, Index start, int left) const {
    if (can_pack(x) && start + at(k, 0) + width <= whole_)
      return *reinterpret_cast<const Words*>(x + at(k, 0));
    P pack{};
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (has(k, j, start, left)) pack.v[j] = x[at(k, j)];
    return __builtin_bit_cast(Words, pack);
  }

  __device__ void store(const P& out, int k, T* y, Index start, int left) const {
    if (packed || (can_pack(y) && has(k, 0, start, left) && at(k, width) <= left))
      gpu::store(reinterpret_cast<P*>(y + at(k, 0)), out);
    else
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (has(k, j, start, left)) y[at(k, j)] = out.v[j];
  }

  template <class F>
  __device__ void each_window(F f) {
    if constexpr (in_registers) {
      if constexpr (sizeof(T) < sizeof(C)) forget_widened(window_);
      f(window_, 0, end_);
    } else {
      const auto left = [this](Index start) {
        return end_ - start < window ? static_cast<int>(end_ - start) : window;
      };
      Window next;  // under way while one is in use
      load(next, 0, left(0));
      for (Index start = 0; start < end_; start += window) {
        Window now;
#pragma unroll
        for (int i = 0; i < inputs; ++i)
#pragma unroll
          for (int k = 0; k < packs; ++k) now[i][k] = next[i][k];
        if (start + window < end_) load(next, start + window, left(start + window));
        f(now, start, left(start));
      }
    }
  }

  // f(j, column, x…) on the elements of the window's pack k; j is a constant once unrolled.
  template <class F>
  __device__ void visit(const Window& w, int k, Index start, int left, F f) const {
    visit(w, k, start, left, f, std::make_index_sequence<inputs>{});
  }
  template <class F, size_t... I>
  __device__ void visit(const Window& w, int k, Index start, int left, F f,
                        std::index_sequence<I...>) const {
    if (at(k, 0) >= left) return;
    if (has(k, 0, start, left) && (packed || at(k, width) <= left))
#pragma unroll
      for (int j = 0; j < width; ++j) f(j, column(start) + at(k, j), element<T>(w[I][k], j)...);
    else if constexpr (!packed)
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (has(k, j, start, left)) f(j, column(start) + at(k, j), element<T>(w[I][k], j)...);
  }

  const T* x_[inputs];
  Window window_;
  std::int64_t index_;
  std::int64_t offset_;
  Index first_;  // column, of a slice that is part of a row
  int before_;   // elements of its first pack
  Index end_;    // of the row, from there on
  Index whole_;  // up to there or to its last pack, there are whole packs to load
  int lane_;
  bool leader_;
};

template <class T, int group, int packs, Held held, bool packed, class Body, class... X>
__global__ void __launch_bounds__(row_threads(group))
    rows_kernel(Body body, RowLayout layout, const X*... x) {
  const T* const from[] = {x...};
  Row<T, sizeof...(X), group, packs, held, packed> row(layout, from);
  body(row);
}

template <class T, int group, int packs, Held held, bool packed, class Body, class... X>
void launch_held(std::string_view op, const Body& body, const RowLayout& layout, const X*... x) {
  const auto kernel = rows_kernel<T, group, packs, held, packed, Body, X...>;
  constexpr int threads = row_threads(group);
  const auto blocks =
      static_cast<unsigned>(divide_up<std::int64_t>(layout.rows * layout.slices, threads / group));
  if constexpr (held == Held::by_cluster) {
    launch_together(op, kernel, {blocks, threads, 0, static_cast<unsigned>(layout.slices)}, body,
                    layout, x...);
  } else {
    launch(op, kernel, dim3(blocks), threads, 0, body, layout, x...);
  }
}

// `y` is where the body writes rows, or null: its alignment counts too.
template <class T, class... X>
bool rows_are_packed(const RowLayout& layout, const T* y, const X*... x) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  return aligned(y) && (aligned(x) && ...) && layout.cols % pack_size<T> == 0 &&
         layout.chunk % pack_size<T> == 0;
}

// Rows or slices of up to group · packs · 16 bytes kept in registers, or of any length and not.
template <class T, int group, int packs, Held held, class Body, class... X>
void launch_rows(std::string_view op, const Body& body, const RowLayout& layout, const T* y,
                 const X*... x) {
  if (rows_are_packed(layout, y, x...))
    return launch_held<T, group, packs, held, true>(op, body, layout, x...);
  launch_held<T, group, packs, held, false>(op, body, layout, x...);
}

// Each row in the registers of 2, 4 or 8 blocks, a slice each.
template <class T, class Body, class... X>
void spread_rows(std::string_view op, const Body& body, const RowLayout& row, const X*... x) {
  constexpr int group = 256;
  constexpr int per_thread = 8;
  const std::int64_t packs = divide_up<std::int64_t>(row.cols, pack_size<T>);
  std::int64_t slices = 2;
  while (slices * group * per_thread < packs) slices *= 2;
  const RowLayout layout{row.rows, row.cols, slices, divide_up(packs, slices) * pack_size<T>};
  launch_held<T, group, per_thread, Held::by_cluster, true>(op, body, layout, x...);
}

// In 32 registers of a thread for each input, fewer where a warp would be left alone with a row.
// The steps that only speed needs are made for packed rows of f32 and bf16.
template <class T, bool packed, class Body, class... X>
void keep_rows_as(std::string_view op, const Body& body, const RowLayout& row, const X*... x) {
  constexpr bool fast = packed && sizeof(T) <= 4;
  const std::int64_t most = packed ? row.cols : row.cols + pack_size<T> - 1;
  const std::int64_t packs = divide_up<std::int64_t>(most, pack_size<T>);
  const auto go = [&]<int group, int per_thread>() {
    launch_held<T, group, per_thread, Held::by_group, packed>(op, body, row, x...);
  };
  if (packs <= 8) return go.template operator()<8, 1>();
  if constexpr (fast)
    if (packs <= 32) return go.template operator()<32, 1>();
  if constexpr (sizeof(T) <= 4)
    if (packs <= 64) return go.template operator()<32, 2>();
  if (packs <= 128) return go.template operator()<64, 2>();
  if (packs <= 256) return go.template operator()<128, 2>();
  if constexpr (sizeof(T) <= 4)
    if (packs <= 512) return go.template operator()<128, 4>();
  if (packs <= 1024) return go.template operator()<128, 8>();
  if (packs <= 2048) return go.template operator()<256, 8>();
  if constexpr (sizeof(T) <= 4)
    if (packs <= 4096) return go.template operator()<512, 8>();
  if constexpr (fast) {
    if constexpr (sizeof...(X) == 1)
      if (packs <= 8192) return go.template operator()<512, 16>();
    if (packs <= most_cluster_blocks * 2048 && have_clusters())
      return spread_rows<T>(op, body, row, x...);
  }
  launch_held<T, 256, 4, Held::nowhere, packed>(op, body, row, x...);
}

template <class T, class Body, class... X>
void keep_rows(std::string_view op, const Body& body, std::int64_t rows, std::int64_t cols,
               const T* y, const X*... x) {
  const RowLayout row{rows, cols};
  if (rows_are_packed(row, y, x...)) return keep_rows_as<T, true>(op, body, row, x...);
  keep_rows_as<T, false>(op, body, row, x...);
}

// `chunk` elements a row (RowLayout): for one pass over long rows, or slices of them.
template <class T, class Body, class... X>
void stream_rows(std::string_view op, const Body& body, const RowLayout& layout, const T* y,
                 const X*... x) {
  const std::int64_t packs = divide_up<std::int64_t>(layout.chunk, pack_size<T>);
  const auto go = [&]<int group, int per_thread>() {
    launch_rows<T, group, per_thread, Held::nowhere>(op, body, layout, y, x...);
  };
  if (packs <= 8) return go.template operator()<8, 1>();
  if (packs <= 128) return go.template operator()<32, 4>();
  if (packs <= 1024) return go.template operator()<128, 4>();
  go.template operator()<256, 4>();
}

// One (outer, inner) pair; blockDim.x neighbouring pairs a block, blockDim.y threads on each, both
// powers of two.
template <class T, int inputs>
class StridedRow {
 public:
  using C = Compute<T>;
  using Wide = double;

  __device__ StridedRow(std::int64_t outer, std::int64_t n, std::int64_t inner,
                        const T* const (&x)[inputs])
      : n_(n), inner_(inner) {
    const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool inside = slot < outer * inner;
    index_ = inside ? slot : 0;
    if (!inside) n_ = 0;
    leader_ = inside && threadIdx.y == 0;
    offset_ = index_ / inner * n * inner + index_ % inner;
#pragma unroll
    for (int i = 0; i < inputs; ++i) x_[i] = x[i] + offset_;
  }

  __device__ std::int64_t index() const { return index_; }
  __device__ bool leader() const { return leader_; }

  // As a Row's: a window is a few elements, loaded before the first is used.
  template <class F>
  __device__ void windows(F f) {
    for (std::int64_t k = threadIdx.y; k < n_; k += window * blockDim.y) {
      T x[inputs][window];
#pragma unroll
      for (int w = 0; w < window; ++w)
        if (k + w * blockDim.y < n_)
#pragma unroll
          for (int i = 0; i < inputs; ++i) x[i][w] = x_[i][(k + w * blockDim.y) * inner_];
      f([&](auto g) { visit(x, k, g, std::make_index_sequence<inputs>{}); });
    }
  }

  template <class F>
  __device__ void each(F f) {
    windows([&](auto visit) { visit(f); });
  }

  // A tree over threadIdx.y; every thread of the pair gets the result.
  template <class Op, class A>
  __device__ A reduce(Op op, A a) const {
    __shared__ A partial[256];
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    partial[me] = a;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) partial[me] = op(partial[me], partial[me + half * blockDim.x]);
    }
    __syncthreads();
    return partial[threadIdx.x];
  }

  template <class F>
  __device__ C max(F f) {
    C m = -std::numeric_limits<C>::infinity();
    each([&](std::int64_t k, auto... x) { m = Max{}(f(k, x...), m); });
    return reduce(Max{}, m);
  }

  template <class Total = C, class F>
  __device__ Total sum(F f) {
    double total = 0;
    each([&](std::int64_t k, auto... x) { total += f(k, x...); });
    return static_cast<Total>(reduce(Sum{}, total));
  }

  template <class F>
  __device__ void write(T* y, F f) {
    each([&](std::int64_t k, auto... x) { y[offset_ + k * inner_] = narrow<T>(f(k, x...)); });
  }

 private:
  static constexpr int window = 4;

  template <class F, size_t... I>
  __device__ void visit(const T (&x)[inputs][window], std::int64_t k, F& f,
                        std::index_sequence<I...>) const {
#pragma unroll
    for (int w = 0; w < window; ++w)
      if (k + w * blockDim.y < n_) f(k + w * blockDim.y, widen(x[I][w])...);
  }

  const T* x_[inputs];
  std::int64_t n_;
  std::int64_t inner_;
  std::int64_t index_;
  std::int64_t offset_;
  bool leader_;
};

template <class T, class Body, class... X>
__global__ void __launch_bounds__(256)
    strided_rows_kernel(Body body, std::int64_t outer, std::int64_t n, std::int64_t inner,
                        const X*... x) {
  const T* const from[] = {x...};
  StridedRow<T, sizeof...(X)> row(outer, n, inner, from);
  body(row);
}

template <class T, class Body, class... X>
void strided_rows(std::string_view op, const Body& body, std::int64_t outer, std::int64_t n,
                  std::int64_t inner, const X*... x) {
  unsigned across = 32;
  while (across > 1 && across / 2 >= inner) across /= 2;
  unsigned along = 256 / across;
  while (along > 1 && along / 2 >= n) along /= 2;
  const std::int64_t blocks = divide_up<std::int64_t>(outer * inner, across);
  launch(op, strided_rows_kernel<T, Body, X...>, dim3(static_cast<unsigned>(blocks)),
         dim3(across, along), 0, body, outer, n, inner, x...);
}

}  // namespace ebb::gpu
