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
//   keep_rows<T>("softmax", Softmax<T>{y}, rows, cols, x);
//
// keep_rows    holds the row in registers between the steps (one read of memory): of a warp, of a
//              block, or of a cluster of blocks (sm_90); wider rows are read again by every step.
// stream_rows  always reads again: for bodies of one step, which need fewer threads in flight.
// Both give rows of a few elements to a thread each (thread_rows.cuh).
//
// Functions get (column, x, …) in Compute<T>. Sums add a window of at most 130 elements a thread in
// Compute<T>, where one of the largest numbers may overflow, and windows in double where there are
// several. All orders are fixed.
#pragma once
#include <utility>

#include "ebb/ops/packs.cuh"
#include "ebb/ops/row_steps.cuh"
#include "ebb/ops/thread_rows.cuh"
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
  return widen(__builtin_bit_cast(Pack<T, pack_size<T>>, x), j);
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
// in those of a block of a cluster, or in memory.
enum class Held { by_group, by_cluster, nowhere };

// `packed` rows begin at 16 bytes and are a multiple of that long. Of others, the last threads have
// the edges beside their packs: an element before those that begin at 16 bytes, and one behind.
template <class T, int inputs, int group, int packs, Held held, bool packed_>
class Row : public RowSteps<Row<T, inputs, group, packs, held, packed_>, T,
                            std::conditional_t<held != Held::nowhere, Compute<T>, double>> {
 public:
  using C = Compute<T>;
  static constexpr bool packed = packed_;
  static constexpr bool in_registers = held != Held::nowhere;
  using Index = std::conditional_t<in_registers, int, std::int64_t>;

  // Threads beyond the last row get an empty one: they take part in reductions and write nothing.
  __device__ Row(const RowLayout& layout, const T* const (&x)[inputs])
      : lane_(threadIdx.x % group) {
    constexpr unsigned of_block = row_threads(group) / group;
    const std::int64_t slot =
        static_cast<std::int64_t>(blockIdx.x) * of_block + threadIdx.x / group;
    const std::int64_t slices = held == Held::by_group ? 1 : layout.slices;
    const bool inside = of_block == 1 || slot < layout.rows * slices;
    const std::int64_t slice = inside ? slot : 0;
    const std::int64_t row = slices == 1 ? slice : slice / slices;
    const std::int64_t first = (slice - row * slices) * layout.chunk;
    const std::int64_t rest = layout.cols - first;
    index_ = held == Held::by_cluster ? row : slice;
    begin_ = row * layout.cols + first;
    first_ = held == Held::by_cluster ? static_cast<Index>(first) : 0;
    end_ = inside ? static_cast<Index>(rest < layout.chunk ? rest : layout.chunk) : 0;
    leader_ = inside && lane_ == 0 && (held != Held::by_cluster || first == 0);
    if constexpr (!packed) find_edges();
    keep(end_);
#pragma unroll
    for (int i = 0; i < inputs; ++i) x_[i] = x[i] + begin_ + before();
    if constexpr (in_registers) load(window_, 0, end_);
    if constexpr (!packed) load_edges();
  }

  __device__ std::int64_t index() const { return index_; }
  __device__ bool leader() const { return leader_; }  // the one thread that writes a row's scalars

  // f(visit) for each window, where visit(g) calls g(column, x…) for each element of this thread.
  template <class F>
  __device__ void windows(F f) {
    each_window([&](const Window& w, Index start, int left) {
      f([&](auto g) { visit_window(w, start, left, g); });
    });
  }
  // bf16 by pairs, as they lie there.
  template <class F>
  __device__ void windows_and_largest(F f) {
    if constexpr (!std::is_same_v<T, bf16>) {
      this->RowSteps<Row, T, typename Row::Wide>::windows_and_largest(f);
    } else {
      each_window([&](const Window& w, Index start, int left) {
        C largest = -std::numeric_limits<C>::infinity();
        const auto one = [&](Index, C x) { largest = fmax(largest, x); };
        head(start, one);
        tail(start, one);
        __nv_bfloat162 both = __float2bfloat162_rn(largest);
#pragma unroll
        for (int k = 0; k < packs; ++k)
          if (at_pack(k) < left)
#pragma unroll
            for (const unsigned word : w[0][k].w)
              both = __hmax2(both, reinterpret_cast<const __nv_bfloat162&>(word));
        f([&](auto g) { visit_window(w, start, left, g); },
          fmax(__low2float(both), __high2float(both)));
      });
    }
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

  // y[row, column] = pack(first column)(j, column, x…), where j counts elements of a pack; those
  // at the edges are packs of one.
  template <class F>
  __device__ void write_packs(T* y, F pack) {
    y += begin_ + before();
    each_window([&](const Window& w, Index start, int left) {
      const auto one = [&](Index place, auto... x) {
        y[place] = narrow<T>(pack(column(place))(0, column(place), x...));
      };
      head(start, one);
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        if (at_pack(k) >= left) continue;
        const Index at = start + at_pack(k);
        const auto f = pack(column(at));
        P out;
        visit(w, k, [&](int j, auto... x) { out.v[j] = narrow<T>(f(j, column(at + j), x...)); });
        gpu::store(reinterpret_cast<P*>(y + at), out);
      }
      tail(start, one);
    });
  }

 private:
  static constexpr int width = pack_size<T>;
  static constexpr int window = group * width * packs;
  using P = Pack<T, width>;
  using Window = Words[inputs][packs];

  // Elements before the first pack.
  __device__ int before() const { return packed ? 0 : before_; }
  // Of a place, counted from the first pack on.
  __device__ Index column(Index place) const { return first_ + before() + place; }
  // Place of pack k in its window.
  __device__ int at_pack(int k) const { return k * (group * width) + lane_ * width; }

  // Finds how many of the end_ elements from begin_ on are packs, and what is not this thread's.
  __device__ void find_edges() {
    const int to_pack = static_cast<int>(-begin_ & (width - 1));
    before_ = end_ < to_pack ? static_cast<int>(end_) : to_pack;
    const int behind = static_cast<int>((end_ - before_) & (width - 1));
    end_ -= before_ + behind;
    const int me = group - 1 - lane_;
    head_ = me < before_ ? me - before_ : nobody;
    tail_ = me < behind ? end_ + me : nobody;
  }
  __device__ void load_edges() {
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      if (head_ != nobody) edges_[0][i] = x_[i][head_];
      if (tail_ != nobody) edges_[1][i] = x_[i][tail_];
    }
  }

  // f(place, x…) on this thread's element before the packs, with the first window, and behind
  // them, with the last: so columns come in their order.
  template <class F>
  __device__ void head(Index start, F f) const {
    if constexpr (!packed)
      if (start == 0 && head_ != nobody) edge(head_, edges_[0], f);
  }
  template <class F>
  __device__ void tail(Index start, F f) const {
    if constexpr (!packed)
      if (start + window >= end_ && tail_ != nobody) edge(tail_, edges_[1], f);
  }
  template <class F>
  __device__ static void edge(Index place, const T (&x)[inputs], F f) {
    edge(place, x, f, std::make_index_sequence<inputs>{});
  }
  template <class F, size_t... I>
  __device__ static void edge(Index place, const T (&x)[inputs], F f, std::index_sequence<I...>) {
    f(place, widen(x[I])...);
  }

  // Of the window that begins at place `start` of the packs and has `left` elements.
  __device__ void load(Window& w, Index start, int left) const {
#pragma unroll
    for (int i = 0; i < inputs; ++i)
#pragma unroll
      for (int k = 0; k < packs; ++k)
        if (at_pack(k) < left)
          w[i][k] = *reinterpret_cast<const Words*>(x_[i] + start + at_pack(k));
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
      Index start = 0;
      do {
        Window now;
#pragma unroll
        for (int i = 0; i < inputs; ++i)
#pragma unroll
          for (int k = 0; k < packs; ++k) now[i][k] = next[i][k];
        if (start + window < end_) load(next, start + window, left(start + window));
        f(now, start, left(start));
        start += window;
      } while (start < end_);
    }
  }

  // f(column, x…) on the window's elements.
  template <class F>
  __device__ void visit_window(const Window& w, Index start, int left, F f) const {
    const auto at = [&](Index place, auto... x) { f(column(place), x...); };
    head(start, at);
#pragma unroll
    for (int k = 0; k < packs; ++k)
      if (at_pack(k) < left)
        visit(w, k, [&](int j, auto... x) { at(start + at_pack(k) + j, x...); });
    tail(start, at);
  }
  // f(j, x…) on the elements of the window's pack k; j is a constant once unrolled.
  template <class F>
  __device__ void visit(const Window& w, int k, F f) const {
    visit(w, k, f, std::make_index_sequence<inputs>{});
  }
  template <class F, size_t... I>
  __device__ void visit(const Window& w, int k, F f, std::index_sequence<I...>) const {
#pragma unroll
    for (int j = 0; j < width; ++j) f(j, element<T>(w[I][k], j)...);
  }

  static constexpr Index nobody = -width;
  const T* x_[inputs];  // from the first pack on
  Window window_;
  T edges_[2][inputs];
  std::int64_t index_;
  std::int64_t begin_;  // element of the tensor
  Index first_;         // column, of a slice that is part of a row
  int before_;
  Index end_;   // of its packs, a place
  Index head_;  // place of this thread's element before them, or nobody
  Index tail_;  // behind them
  int lane_;
  bool leader_;
};

// What leaves 64 registers a thread leaves them to 1024 threads of a multiprocessor.
constexpr int row_blocks(int group, int packs, Held held) {
  return held != Held::nowhere && packs <= 8 ? 1024 / row_threads(group) : 1;
}

template <class T, int group, int packs, Held held, bool packed, class Body, class... X>
__global__ void __launch_bounds__(row_threads(group), row_blocks(group, packs * sizeof...(X), held))
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

template <class T>
bool rows_are_packed(const RowLayout& layout) {
  return layout.cols % pack_size<T> == 0 && layout.chunk % pack_size<T> == 0;
}

// Each row in the registers of up to 8 blocks, a slice each.
constexpr std::int64_t spread_packs = 2048;  // of a block
template <class T, bool packed, class Body, class... X>
void spread_rows(std::string_view op, const Body& body, const RowLayout& row, const X*... x) {
  constexpr int per_thread = 8 / sizeof...(X);
  constexpr int group = spread_packs / per_thread;
  const std::int64_t packs = divide_up<std::int64_t>(row.cols, pack_size<T>);
  const std::int64_t slices = divide_up(packs, spread_packs);
  const RowLayout layout{row.rows, row.cols, slices, divide_up(packs, slices) * pack_size<T>};
  launch_held<T, group, per_thread, Held::by_cluster, packed>(op, body, layout, x...);
}

// In 32 registers of a thread for each input, fewer where a warp would be left alone with a row.
// The steps that only speed needs are made for f32 and bf16.
template <class T, bool packed, class Body, class... X>
void keep_rows_as(std::string_view op, const Body& body, const RowLayout& row, const X*... x) {
  constexpr bool fast = sizeof(T) <= 4;
  const std::int64_t packs = row.cols / pack_size<T>;
  const auto go = [&]<int group, int per_thread>() {
    launch_held<T, group, per_thread, Held::by_group, packed>(op, body, row, x...);
  };
  if (packs <= 8) return go.template operator()<8, 1>();
  if constexpr (fast) {
    if (packs <= 32) return go.template operator()<16, 2>();
    if (packs <= 64) return go.template operator()<32, 2>();
    if (packs <= 96) return go.template operator()<32, 3>();
  }
  if (packs <= 128) return go.template operator()<32, 4>();
  if (packs <= 256) return go.template operator()<128, 2>();
  if constexpr (fast)
    if (packs <= 512) return go.template operator()<128, 4>();
  if (packs <= 1024) return go.template operator()<128, 8>();
  constexpr int many = sizeof(T) == 4 ? 512 : 256;
  if (packs <= 2048) return go.template operator()<many, 2048 / many>();
  if constexpr (fast) {
    if (packs <= 4096) return go.template operator()<512, 8>();
    if constexpr (sizeof...(X) == 1)
      if (packs <= 8192) return go.template operator()<512, 16>();
    constexpr std::int64_t most = most_cluster_blocks * spread_packs * pack_size<T>;
    if (row.cols <= most && have_clusters()) return spread_rows<T, packed>(op, body, row, x...);
  }
  launch_held<T, 256, 4, Held::nowhere, packed>(op, body, row, x...);
}

template <class T, class Body, class... X>
void keep_rows(std::string_view op, const Body& body, std::int64_t rows, std::int64_t cols,
               const X*... x) {
  if (are_thread_rows<T>(rows, cols)) return thread_rows<T>(op, body, rows, cols, x...);
  const RowLayout row{rows, cols};
  if (rows_are_packed<T>(row)) return keep_rows_as<T, true>(op, body, row, x...);
  keep_rows_as<T, false>(op, body, row, x...);
}

// `chunk` elements a row (RowLayout): for one pass over long rows, or slices of them.
template <class T, class Body, class... X>
void stream_rows(std::string_view op, const Body& body, const RowLayout& layout, const X*... x) {
  if (layout.slices == 1 && are_thread_rows<T>(layout.rows, layout.cols))
    return thread_rows<T>(op, body, layout.rows, layout.cols, x...);
  const std::int64_t packs = divide_up<std::int64_t>(layout.chunk, pack_size<T>);
  const auto go = [&]<int group, int per_thread>() {
    if (rows_are_packed<T>(layout))
      launch_held<T, group, per_thread, Held::nowhere, true>(op, body, layout, x...);
    else
      launch_held<T, group, per_thread, Held::nowhere, false>(op, body, layout, x...);
  };
  if (packs <= 8) return go.template operator()<8, 1>();
  if (packs <= 256) return go.template operator()<32, 4>();
  if (packs <= 1024) return go.template operator()<128, 4>();
  go.template operator()<256, 4>();
}

}  // namespace ebb::gpu
