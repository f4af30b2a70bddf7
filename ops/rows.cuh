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
// keep_rows    holds the row in registers between the steps (one read of memory), up to 512
//              threads × 8 packs of 16 bytes (16 of one f32 or f64 input); wider rows are read
//              again by every step.
// stream_rows  always reads again: for bodies of one step, which need fewer threads in flight.
// strided_rows the same for [outer, n, inner] along n, neighbouring threads on neighbouring inner.
//
// Functions get (column, x, …) in Compute<T>. Sums add a window of at most 64 elements a thread in
// Compute<T> and windows in double where there are several. All orders are fixed.
// A window of the largest numbers overflows, unless each is multiplied by window_scale first.
#pragma once
#include <limits>
#include <utility>

#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

inline constexpr double window_scale = 1. / 128;

// `rows` rows of `cols` elements, each cut into `slices` of `chunk`: what the engine calls a row
// is one slice. index = row · slices + slice.
struct RowLayout {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t slices = 1;
  std::int64_t chunk = cols;
};

template <class T, int inputs, int group, int packs, bool kept>
class Row {
 public:
  using C = Compute<T>;
  using Wide = std::conditional_t<kept, C, double>;  // what windows are added in
  using Index = std::conditional_t<kept, int, std::int64_t>;
  static constexpr bool in_registers = kept;

  // Threads beyond the last row get an empty one: they take part in reductions and write nothing.
  __device__ Row(const RowLayout& layout, bool packed, const T* const (&x)[inputs])
      : lane_(threadIdx.x % group), packed_(packed) {
    const std::int64_t slot =
        static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group;
    const bool inside = slot < layout.rows * layout.slices;
    index_ = inside ? slot : 0;
    leader_ = inside && lane_ == 0;
    const std::int64_t row = layout.slices == 1 ? index_ : index_ / layout.slices;
    const std::int64_t first = (index_ - row * layout.slices) * layout.chunk;
    const std::int64_t rest = layout.cols - first;
    offset_ = row * layout.cols + first;
    cols_ = inside ? static_cast<Index>(rest < layout.chunk ? rest : layout.chunk) : 0;
#pragma unroll
    for (int i = 0; i < inputs; ++i) x_[i] = x[i] + offset_;
    if constexpr (kept) load(window_, 0);
  }

  __device__ std::int64_t index() const { return index_; }
  __device__ bool leader() const { return leader_; }  // the one thread that writes a row's scalars

  // f(column, x…) for each element this thread sees.
  template <class F>
  __device__ void each(F f) {
    windows([&](const Window& w, Index start) {
      visit(w, start, [&](int, Index col, auto... x) { f(col, x...); });
    });
  }

  template <class Op, class A>
  __device__ A reduce(Op op, A a) const {
    if constexpr (group <= warp_size) {
      return warp_reduce<group>(a, op);
    } else {
      return block_reduce<group>(a, op);
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
    windows([&](const Window& w, Index start) {
      C part = 0;
      visit(w, start, [&](int, Index col, auto... x) { part += f(col, x...); });
      total += part;
    });
    return static_cast<Total>(reduce(Sum{}, total));
  }

  // y[row, column] = f(column, x…)
  template <class F>
  __device__ void write(T* y, F f) {
    windows([&](const Window& w, Index start) {
      Pack<T, width> out[packs];
      visit(w, start, [&](int slot, Index col, auto... x) {
        out[slot / width].v[slot % width] = narrow<T>(f(col, x...));
      });
      store(out, start, y + offset_);
    });
  }

 private:
  static constexpr int width = pack_size<T>;
  using Window = Pack<T, width>[inputs][packs];

  // Column of element j of pack k: packs side by side, or element by element when unaligned.
  __device__ Index at(int k, int j) const {
    return k * (group * width) + (packed_ ? lane_ * width + j : j * group + lane_);
  }

  __device__ void load(Window& w, Index start) const {
#pragma unroll
    for (int i = 0; i < inputs; ++i)
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const Index col = start + at(k, 0);
        if (packed_) {
          if (col < cols_) w[i][k] = *reinterpret_cast<const Pack<T, width>*>(x_[i] + col);
          continue;
        }
#pragma unroll
        for (int j = 0; j < width; ++j)
          if (start + at(k, j) < cols_) w[i][k].v[j] = x_[i][start + at(k, j)];
      }
  }

  template <class F>
  __device__ void windows(F f) {
    if constexpr (kept) {
      f(window_, 0);
    } else {
      for (Index start = 0; start < cols_; start += group * width * packs) {
        Window w;
        load(w, start);
        f(w, start);
      }
    }
  }

  // f(slot, column, x…) on the window's elements; slot is a constant once the loops are unrolled.
  template <class F>
  __device__ void visit(const Window& w, Index start, F f) const {
    visit(w, start, f, std::make_index_sequence<inputs>{});
  }
  template <class F, size_t... I>
  __device__ void visit(const Window& w, Index start, F f, std::index_sequence<I...>) const {
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (start + at(k, j) < cols_) f(k * width + j, start + at(k, j), widen(w[I][k].v[j])...);
  }

  __device__ void store(const Pack<T, width> (&out)[packs], Index start, T* y) const {
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const Index col = start + at(k, 0);
      if (packed_) {
        if (col < cols_) *reinterpret_cast<Pack<T, width>*>(y + col) = out[k];
        continue;
      }
#pragma unroll
      for (int j = 0; j < width; ++j)
        if (start + at(k, j) < cols_) y[start + at(k, j)] = out[k].v[j];
    }
  }

  const T* x_[inputs];
  Window window_;
  std::int64_t index_;
  std::int64_t offset_;
  Index cols_;
  int lane_;
  bool packed_;
  bool leader_;
};

inline constexpr int row_threads(int group) { return group < 128 ? 128 : group; }

template <class T, int group, int packs, bool kept, class Body, class... X>
__global__ void __launch_bounds__(row_threads(group))
    rows_kernel(Body body, RowLayout layout, bool packed, const X*... x) {
  const T* const from[] = {x...};
  Row<T, sizeof...(X), group, packs, kept> row(layout, packed, from);
  body(row);
}

template <class T, int group, int packs, bool kept, class Body, class... X>
void launch_rows(std::string_view op, const Body& body, const RowLayout& layout, const T* y,
                 const X*... x) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  const bool packed = aligned(y) && (aligned(x) && ...) && layout.cols % pack_size<T> == 0 &&
                      layout.chunk % pack_size<T> == 0;
  constexpr int threads = row_threads(group);
  const std::int64_t blocks = divide_up<std::int64_t>(layout.rows * layout.slices, threads / group);
  launch(op, rows_kernel<T, group, packs, kept, Body, X...>, dim3(static_cast<unsigned>(blocks)),
         threads, 0, body, layout, packed, x...);
}

// `y` is where the body writes rows, or null: its alignment counts too.
template <class T, class Body, class... X>
void keep_rows(std::string_view op, const Body& body, std::int64_t rows, std::int64_t cols,
               const T* y, const X*... x) {
  const std::int64_t packs = divide_up<std::int64_t>(cols, pack_size<T>);
  const RowLayout layout{rows, cols};
  const auto go = [&]<int group, int per_thread, bool kept>() {
    launch_rows<T, group, per_thread, kept>(op, body, layout, y, x...);
  };
  if (packs <= 8) return go.template operator()<8, 1, true>();
  if (packs <= 32) return go.template operator()<32, 1, true>();
  if (packs <= 128) return go.template operator()<32, 4, true>();
  if (packs <= 512) return go.template operator()<128, 4, true>();
  if (packs <= 2048) return go.template operator()<256, 8, true>();
  if (packs <= 4096) return go.template operator()<512, 8, true>();
  if constexpr (sizeof...(X) == 1 && sizeof(T) >= 4) {  // else 128 registers are not enough
    if (packs <= 8192) return go.template operator()<512, 16, true>();
  }
  go.template operator()<512, 4, false>();
}

// `chunk` elements a row (RowLayout): for one pass over long rows, or slices of them.
template <class T, class Body, class... X>
void stream_rows(std::string_view op, const Body& body, const RowLayout& layout, const T* y,
                 const X*... x) {
  const std::int64_t packs = divide_up<std::int64_t>(layout.chunk, pack_size<T>);
  const auto go = [&]<int group, int per_thread>() {
    launch_rows<T, group, per_thread, false>(op, body, layout, y, x...);
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
  static constexpr bool in_registers = false;

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

  template <class F>
  __device__ void each(F f) {
    each(f, std::make_index_sequence<inputs>{});
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
  template <class F, size_t... I>
  __device__ void each(F& f, std::index_sequence<I...>) {
#pragma unroll 4
    for (std::int64_t k = threadIdx.y; k < n_; k += blockDim.y) f(k, widen(x_[I][k * inner_])...);
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
