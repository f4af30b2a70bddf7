#include "ebb/ops/pooling/any.cuh"
#include "ebb/ops/pooling/avg_pool2d.h"
#include "ebb/ops/pooling/divisor.cuh"
#include "ebb/ops/pooling/known.cuh"

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

// Any windows: a thread has a square of kernel² elements.
template <int kernel, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_square(PlacesOf<Index> places, AnySides<Index> s, Divisor d, const T* x, T* y) {
  at_place(places, [&](const Place<Index>& at) {
    T in[kernel][kernel];
    load_window(s, x + std::int64_t{at.plane} * s.image, s.down.begin(at.row),
                s.across.begin(at.column), T{}, in);
    const Compute<T> sum =
        sum_of_lines<kernel, kernel>([&](int r, int c) { return widen(in[r][c]); });
    y[s.place(at)] = narrow<T>(sum / divisor_of<Compute<T>>(d, s, at.row, at.column));
  });
}

// Any windows: a group of threads has one.
template <int group, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_group(PlacesOf<Index> places, AnySides<Index> s, Divisor d, const T* x, T* y) {
  const auto at = place_of_group<group>(places);
  const T* const plane = x + std::int64_t{at.plane} * s.image;
  Compute<T> line = 0;
  double sum = 0;  // as there may be thousands of lines
  if (at.there)
    Share<group, Index>(s, s.down.begin(at.row), s.across.begin(at.column))
        .each([&](Index place, Index) { line += widen(plane[place]); },
              [&] {
                sum += static_cast<double>(line);
                line = 0;
              });
  sum = group_reduce<group>(sum, Sum{});
  if (at.there && threadIdx.x % group == 0)
    y[s.place(at)] =
        narrow<T>(static_cast<Compute<T>>(sum) / divisor_of<Compute<T>>(d, s, at.row, at.column));
}

// Any windows, backward. Where all have `one` divisor, it is what the sum of dy is divided by.
template <int width, Windows windows, bool one, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_gather(PlacesOf<Index> places, AnySides<Index> s, Divisor d,
                    OneDivisor<Compute<T>> all, const T* dy, T* dx) {
  const auto share = [&](std::int64_t i, Index p, Index q, Index, Index) {
    return one ? widen(dy[i]) : widen(dy[i]) / divisor_of<Compute<T>>(d, s, p, q);
  };
  const auto mean = [&](Compute<T> sum) { return one ? all(sum) : sum; };
  const auto add = [&](Compute<T>(&sum)[width], std::int64_t i, Index p, Index q, Index, Index c) {
    const Compute<T> v = share(i, p, q, 0, c);
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (c + j >= 0 && c + j < s.across.kernel) sum[j] += v;
  };
  at_place(places, [&](const Place<Index>& at) {
    if constexpr (windows == Windows::overlap)
      gather_overlap<width>(at, s, dx, add, mean);
    else
      gather<width, windows == Windows::apart>(at, s, dx, share, mean);
  });
}

template <class T, class Index>
void forward_of_any(const PoolSize& s, const Divisor& d, const T* x, T* y) {
  const PlacesOf<Index> outputs(s.planes, s.p, s.q);
  const auto go = [&](auto kernel, int threads, int group) {
    launch(op, kernel, outputs.blocks(threads / group), threads, 0, outputs, AnySides<Index>(s), d,
           x, y);
  };
  if constexpr (sizeof(Index) == 4)
    if (visit_kernel(
            s, [&]<int kernel>() { go(avg_pool_square<kernel, T, Index>, outputs.threads(), 1); }))
      return;
  visit_groups(s, [&]<int group>() {
    go(avg_pool_group<group, T, Index>, group == 1 ? outputs.threads() : pool_threads, group);
  });
}

template <class T, class Index>
void backward_of_any(const PoolSize& s, const Divisor& d, const T* dy, T* dx) {
  const auto go = [&]<int width, Windows windows, bool one>() {
    const PlacesOf<Index> inputs(s.planes, s.h, divide_up<std::int64_t>(s.w, width));
    launch(op, avg_pool_gather<width, windows, one, T, Index>, inputs.blocks(), inputs.threads(), 0,
           inputs, AnySides<Index>(s), d, OneDivisor<Compute<T>>(divisor_of_all(s, d)), dy, dx);
  };
  visit_gather(s, dx, [&]<int width, Windows windows>() {
    divisor_of_all(s, d) ? go.template operator()<width, windows, true>()
                         : go.template operator()<width, windows, false>();
  });
}

// f(T{}, Index{}) with the types of values and counts.
template <class F>
void visit_types(const PoolSize& s, const Tensor& x, F&& f) {
  visit<float, double, bf16>(
      x.dtype(), op, [&](auto value) { is_few(s) ? f(value, int{}) : f(value, std::int64_t{}); });
}

// f(Block{}, OneDivisor{}) or with OwnDivisors{}, if the windows have a kernel of their own.
template <class T, class F>
bool visit_known(const PoolSize& s, const Divisor& d, F&& f) {
  return visit_squares<T>(s, [&](auto block) {
    if (divisor_of_all(s, d) != 0)
      f(block, OneDivisor<Compute<T>>(divisor_of_all(s, d)));
    else
      f(block, OwnDivisors<Compute<T>>{AnySides<int>(s), d});
  });
}

}  // namespace
}  // namespace gpu

void gpu::avg_pool2d(const PoolSize& s, const Divisor& d, const Tensor& x, Tensor& y) {
  visit_types(s, x, [&](auto value, auto count) {
    using T = decltype(value);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const bool known = visit_known<T>(s, d, [&]<class B, class M>(B, const M& mean) {
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
    const bool known = visit_known<T>(s, d, [&]<class B, class M>(B, const M& mean) {
      pool(op, B::inputs(s), AvgPoolGather<B, M>{Planes(s), mean, from, to});
    });
    if (!known) backward_of_any<T, decltype(count)>(s, d, from, to);
  });
}

}  // namespace ebb
