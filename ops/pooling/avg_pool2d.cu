#include "ebb/ops/pooling/any.cuh"
#include "ebb/ops/pooling/avg_pool2d.h"
#include "ebb/ops/pooling/divisor.cuh"
#include "ebb/ops/pooling/known.cuh"
#include "ebb/ops/pooling/wide.cuh"

namespace ebb {
namespace gpu {
namespace {

constexpr std::string_view op = "avg_pool2d";

// Σ of(r, c), line by line.
template <int height, int width, class F>
__device__ auto sum_of_lines(const F& of) {
  decltype(of(0, 0)) sum = 0;
#pragma unroll
  for (int r = 0; r < height; ++r) {
    auto line = of(r, 0);
#pragma unroll
    for (int c = 1; c < width; ++c) line += of(r, c);
    sum += line;
  }
  return sum;
}

// Known windows: a block of outputs a thread.
template <class B, class M>
struct AvgPool {
  using T = typename B::T;
  using Window = Seen<B>;
  Planes s;
  M mean;
  bool passing;
  const T* x;
  T* y;

  __device__ void load(const Place<int>& at, Window& in) const {
    load_seen<B>(s, at, x, T{}, passing, in);
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    Pack<T, B::columns> out;
#pragma unroll
    for (int j = 0; j < B::columns; ++j) {
      const Compute<T> sum = sum_of_lines<B::Height::kernel, B::Width::kernel>(
          [&](int r, int c) { return widen(in[r][j * B::Width::stride + c]); });
      out.v[j] = narrow<T>(mean(sum, at.row, at.column * B::columns + j));
    }
    store_outputs<B>(s, at, out, y);
  }
};

// Known windows: each input of a block adds up the shares of the windows that see it.
template <class B, class M>
struct AvgPoolGather {
  using T = typename B::T;
  using Window = Seers<B, T>;
  Planes s;
  M mean;
  const T* dy;
  T* dx;

  __device__ void load(const Place<int>& at, Window& in) const {
    load_seers<B>(s, at, dy, T{}, in);
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    Compute<T> share[B::down][B::across];  // of one divisor, before it is divided
#pragma unroll
    for (int i = 0; i < B::down; ++i)
#pragma unroll
      for (int j = 0; j < B::across; ++j) {
        share[i][j] = widen(in[i][j]);
        if constexpr (!M::one) {
          const int p = at.row - B::Height::earlier + i;
          const int q = at.column * B::columns - B::Width::earlier + j;
          share[i][j] = p < s.p && q < s.q ? mean(share[i][j], p, q) : 0;
        }
      }
    const auto gradient = [&](int r, int c) {
      Compute<T> sum = 0;
      each_seer<B>(r, c, [&](int i, int j, int) { sum += share[i][j]; });
      if constexpr (M::one) sum = mean(sum);
      return narrow<T>(sum);
    };
    store_inputs<B>(s, at, gradient, dx);
  }
};

// Any windows: one output a thread, of windows of kernel² elements, or any if that is 0.
template <int kernel, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_any(PlacesOf<Index> places, Extents<Index> s, Divisor d, const T* x, T* y) {
  at_place(places, [&](std::int64_t plane, Index p, Index q) {
    const auto rows = rows_of(s, d, p);
    const auto columns = columns_of(s, d, q);
    Compute<T> sum = 0;
    if constexpr (kernel > 0) {
      T in[kernel][kernel];
      load_window(s, x + plane * s.image, p * s.stride_h - s.padding_h,
                  q * s.stride_w - s.padding_w, T{}, in);
      sum = sum_of_lines<kernel, kernel>([&](int r, int c) { return widen(in[r][c]); });
    } else {
      for (Index h = rows.first; h < rows.last; ++h) {
        Compute<T> line = 0;  // windows may be large: rows are summed on their own
        for (Index w = columns.first; w < columns.last; ++w)
          line += widen(x[(plane * s.h + h) * s.w + w]);
        sum += line;
      }
    }
    const bool some = rows.first < rows.last && columns.first < columns.last;
    y[plane * s.output + (p * s.q + q)] =
        narrow<T>(some ? sum / divisor_of<Compute<T>>(d, rows, columns) : 0);
  });
}

// Any windows, backward: a thread has `width` inputs side by side. Where all windows have `one`
// divisor, it is what the sum of dy is divided by.
template <int width, bool apart, bool one, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_gather(PlacesOf<Index> places, Extents<Index> s, AnyWindows<Index> windows, Divisor d,
                    OneDivisor<Compute<T>> all, const T* dy, T* dx) {
  at_place(places, [&](std::int64_t plane, Index h, Index pack) {
    const Index w = pack * width;
    Compute<T> sum[width] = {};
    windows.down.template each<apart>(h, [&](Index p, Index) {
      const T* const line = dy + plane * s.output + p * s.q;
#pragma unroll
      for (int j = 0; j < width; ++j)
        windows.across.template each<apart>(w + j, [&](Index q, Index) {
          Compute<T> share = widen(line[q]);
          if constexpr (!one)
            share /= divisor_of<Compute<T>>(d, rows_of(s, d, p), columns_of(s, d, q));
          sum[j] += share;
        });
    });
    if constexpr (one)
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] = all(sum[j]);
    store(reinterpret_cast<Pack<T, width>*>(dx + plane * s.image + (h * s.w + w)),
          narrow<T, width>(sum));
  });
}

// Windows of many elements that hardly overlap: a group of threads an output.
template <int group, class T>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_wide(Wide wide, Extents<int> s, Divisor d, const T* x, T* y) {
  const auto at = wide.place<group>();
  const auto rows = rows_of(s, d, at.row);
  const auto columns = columns_of(s, d, at.column);
  const T* const plane = x + std::int64_t{at.plane} * s.image;
  Compute<T> sum = 0;
  if (at.there)
    wide.each<group>(rows.first, rows.last, columns.first, columns.last,
                     [&](int h, int w) { sum += widen(plane[h * s.w + w]); });
  sum = group_reduce<group>(sum, Sum{});
  if (at.there && wide.leader<group>())
    y[std::int64_t{at.plane} * s.output + (at.row * s.q + at.column)] =
        narrow<T>(sum / divisor_of<Compute<T>>(d, rows, columns));
}

template <class T, class Index>
void forward_of_any(const PoolSize& s, const Divisor& d, const T* x, T* y) {
  if constexpr (std::is_same_v<Index, int> && sizeof(T) <= 4)
    if (is_wide(s))
      return visit_groups(s, [&]<int group>() {
        const Wide wide(s);
        launch(op, avg_pool_wide<group, T>, wide.blocks(group), pool_threads, 0, wide,
               Extents<int>(s), d, x, y);
      });
  const PlacesOf<Index> outputs(s.planes, s.p, s.q);
  visit_kernel(s, [&]<int kernel>() {
    launch(op, avg_pool_any<kernel, T, Index>, outputs.blocks(), outputs.threads(), 0, outputs,
           Extents<Index>(s), d, x, y);
  });
}

template <class T, class Index>
void backward_of_any(const PoolSize& s, const Divisor& d, const T* dy, T* dx) {
  const auto go = [&]<int width, bool apart, bool one>() {
    const PlacesOf<Index> inputs(s.planes, s.h, s.w / width);
    launch(op, avg_pool_gather<width, apart, one, T, Index>, inputs.blocks(), inputs.threads(), 0,
           inputs, Extents<Index>(s), AnyWindows<Index>(s), d,
           OneDivisor<Compute<T>>(divisor_of_all(s, d)), dy, dx);
  };
  if (divisor_of_all(s, d) == 0) return go.template operator()<1, false, false>();
  visit_gather(s, dx,
               [&]<int width, bool apart>() { go.template operator()<width, apart, true>(); });
}

// f(T{}, Index{}) with the types of values and counts.
template <class F>
void visit_types(const PoolSize& s, const Tensor& x, F&& f) {
  visit<float, double, bf16>(
      x.dtype(), op, [&](auto value) { is_few(s) ? f(value, int{}) : f(value, std::int64_t{}); });
}

// f(Block{}, OneDivisor{}) or with OwnDivisors{}, if the windows have a kernel of their own.
template <class T, class F>
bool visit_known(const PoolSize& s, const Divisor& d, const T* image, const T* output, F&& f) {
  return visit_squares(s, image, output, [&](auto block) {
    if (divisor_of_all(s, d) != 0)
      f(block, OneDivisor<Compute<T>>(divisor_of_all(s, d)));
    else
      f(block, OwnDivisors<Compute<T>>{Extents<int>(s), d});
  });
}

}  // namespace
}  // namespace gpu

void gpu::avg_pool2d(const PoolSize& s, const Divisor& d, const Tensor& x, Tensor& y) {
  visit_types(s, x, [&](auto value, auto count) {
    using T = decltype(value);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const bool known = visit_known(s, d, from, to, [&]<class B, class M>(B, const M& mean) {
      pool(op, B::outputs(s), AvgPool<B, M>{Planes(s), mean, B::passing(s), from, to});
    });
    if (!known) forward_of_any<T, decltype(count)>(s, d, from, to);
  });
}

void gpu::avg_pool2d_backward(const PoolSize& s, const Divisor& d, const Tensor& dy, Tensor& dx) {
  visit_types(s, dy, [&](auto value, auto count) {
    using T = decltype(value);
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    const bool known = visit_known(s, d, to, from, [&]<class B, class M>(B, const M& mean) {
      pool(op, B::inputs(s), AvgPoolGather<B, M>{Planes(s), mean, from, to});
    });
    if (!known) backward_of_any<T, decltype(count)>(s, d, from, to);
  });
}

}  // namespace ebb
