#include "ebb/ops/pooling/any.cuh"
#include "ebb/ops/pooling/best.cuh"
#include "ebb/ops/pooling/known.cuh"
#include "ebb/ops/pooling/max_pool2d.h"

namespace ebb {
namespace gpu {
namespace {

constexpr std::string_view op = "max_pool2d";

// Known windows: a block of outputs a thread.
template <class B>
struct MaxPool {
  using T = typename B::T;
  using Window = Seen<B>;
  using A = Abreast<T, B::columns % 2 == 0>;
  Planes s;
  bool passing;
  const T* x;
  std::uint8_t* index;
  T* y;

  __device__ void load(const Place<int>& at, Window& in) const {
    load_seen<B>(s, at, x, least<T>(), passing, in);
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    using Height = typename B::Height;
    using Width = typename B::Width;
    Pack<T, B::columns> out;
    Pack<std::uint8_t, B::columns> place;
#pragma unroll
    for (int j = 0; j < B::columns; j += A::outputs) {
      const auto tap = [&](int k) {
        Pack<T, A::outputs> v;
#pragma unroll
        for (int l = 0; l < A::outputs; ++l)
          v.v[l] = in[k / Width::kernel][(j + l) * Width::stride + k % Width::kernel];
        return v;
      };
      int first[A::outputs];
#pragma unroll
      for (int l = 0; l < A::outputs; ++l)
        first[l] = (at.row == 0 ? Height::padding * Width::kernel : 0) +
                   (at.column == 0 && j + l == 0 ? Width::padding : 0);
      A best;
      best.template see<B::taps>(tap, first);
#pragma unroll
      for (int l = 0; l < A::outputs; ++l) {
        out.v[j + l] = best.value(l);
        place.v[j + l] = static_cast<std::uint8_t>(best.place(l));
      }
    }
    store_outputs<B>(s, at, out, y);
    if (index) store_outputs<B>(s, at, place, index);
  }
};

// Known windows: each input of a block asks the windows that see it whether it was their maximum.
template <class B>
struct MaxPoolGather {
  using T = typename B::T;
  struct Window {
    Seers<B, T> from;
    Seers<B, std::uint8_t> place;
  };
  Planes s;
  const std::uint8_t* index;
  const T* dy;
  T* dx;

  __device__ void load(const Place<int>& at, Window& in) const {
    constexpr std::uint8_t nowhere = 255;
    load_seers<B>(s, at, dy, T{}, in.from);
    load_seers<B>(s, at, index, nowhere, in.place);
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    const auto gradient = [&](int r, int c) {
      Compute<T> sum = 0;
      T one{};  // of windows apart, the only one
      each_seer<B>(r, c, [&](int i, int j, int here) {
        if (in.place[i][j] != here) return;
        sum += widen(in.from[i][j]);
        one = in.from[i][j];
      });
      return B::apart ? one : narrow<T>(sum);
    };
    store_inputs<B>(s, at, gradient, dx);
  }
};

// Any windows: a thread has a square of kernel² elements.
template <int kernel, class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_square(PlacesOf<Index> places, AnySides<Index> s, const T* x, I* index, T* y) {
  at_place(places, [&](const Place<Index>& at) {
    const Index top = s.down.begin(at.row), left = s.across.begin(at.column);
    const auto rows = s.down.taps(top), columns = s.across.taps(left);
    const bool some = rows.first < rows.last && columns.first < columns.last;
    const Index first = some ? rows.first * kernel + columns.first : -1;
    T in[kernel][kernel];
    load_window(s, x + std::int64_t{at.plane} * s.image, top, left, least<T>(), in);
    Best<Compute<T>> best{-INFINITY, static_cast<int>(first)};
#pragma unroll
    for (int k = 0; k < kernel * kernel; ++k) best.see(widen(in[k / kernel][k % kernel]), k);
    y[s.place(at)] = narrow<T>(best.value);
    if (index) index[s.place(at)] = static_cast<I>(best.place);
  });
}

// Any windows: a group of threads has one.
template <int group, class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_group(PlacesOf<Index> places, AnySides<Index> s, const T* x, I* index, T* y) {
  const auto at = place_of_group<group>(places);
  const Index top = s.down.begin(at.row), left = s.across.begin(at.column);
  const T* const plane = x + std::int64_t{at.plane} * s.image;
  Best<Compute<T>> best{-INFINITY, nowhere};
  if (at.there) {
    const Share<group, Index> share(s, top, left);
    if (share.rows > 0) best.place = static_cast<int>(share.first_tap);
    share.each(
        [&](Index place, Index tap) { best.see(widen(plane[place]), static_cast<int>(tap)); },
        [] {});
  }
  best = group_best<group>(best);
  if (!at.there || threadIdx.x % group != 0) return;
  const bool some = best.place != nowhere;
  const Index r = best.place / s.across.kernel, c = best.place % s.across.kernel;
  y[s.place(at)] = some ? plane[s.place(top, left, r, c)] : least<T>();
  if (index) index[s.place(at)] = static_cast<I>(some ? best.place : -1);
}

// Any windows, backward.
template <int width, Windows windows, class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_gather(PlacesOf<Index> places, AnySides<Index> s, const I* index, const T* dy, T* dx) {
  const auto passed = [&](std::int64_t i, Index, Index, Index r, Index c) {
    const Compute<T> of_window = widen(dy[i]);
    return index[i] == static_cast<I>(r * s.across.kernel + c) ? of_window : 0;
  };
  const auto sum = [](Compute<T> sum) { return sum; };
  const auto add = [&](Compute<T>(&sum)[width], std::int64_t i, Index, Index, Index r, Index c) {
    const Index at = static_cast<Index>(index[i]) - (r * s.across.kernel + c);  // which of dx
    const bool some = at >= 0 && at < width && c + at >= 0 && c + at < s.across.kernel;
    const Compute<T> of_window = some ? widen(dy[i]) : 0;
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (at == j) sum[j] += of_window;
  };
  at_place(places, [&](const Place<Index>& at) {
    if constexpr (windows == Windows::overlap)
      gather_overlap<width>(at, s, dx, add, sum);
    else
      gather<width, windows == Windows::apart>(at, s, dx, passed, sum);
  });
}

template <class T, class I, class Index>
void forward_of_any(const PoolSize& s, const T* x, I* index, T* y) {
  const PlacesOf<Index> outputs(s.planes, s.p, s.q);
  const auto go = [&](auto kernel, int threads, int group) {
    launch(op, kernel, outputs.blocks(threads / group), threads, 0, outputs, AnySides<Index>(s), x,
           index, y);
  };
  if constexpr (sizeof(I) == 1 && sizeof(Index) == 4)
    if (visit_kernel(s, [&]<int kernel>() {
          go(max_pool_square<kernel, T, I, Index>, outputs.threads(), 1);
        }))
      return;
  visit_groups(s, [&]<int group>() {
    go(max_pool_group<group, T, I, Index>, group == 1 ? outputs.threads() : pool_threads, group);
  });
}

template <class T, class I, class Index>
void backward_of_any(const PoolSize& s, const I* index, const T* dy, T* dx) {
  visit_gather(s, dx, [&]<int width, Windows windows>() {
    const PlacesOf<Index> inputs(s.planes, s.h, divide_up<std::int64_t>(s.w, width));
    launch(op, max_pool_gather<width, windows, T, I, Index>, inputs.blocks(), inputs.threads(), 0,
           inputs, AnySides<Index>(s), index, dy, dx);
  });
}

// f(T{}, I{}, Index{}) with the types of values, places and counts.
template <class F>
void visit_types(const PoolSize& s, const Tensor& x, const Tensor& index, F&& f) {
  visit<float, double, bf16>(x.dtype(), op, [&](auto value) {
    const auto with_index = [&](auto place) {
      is_few(s) ? f(value, place, int{}) : f(value, place, std::int64_t{});
    };
    if (index.defined() && index.dtype() == Dtype::i32)
      with_index(std::int32_t{});
    else
      with_index(std::uint8_t{});
  });
}

}  // namespace
}  // namespace gpu

void gpu::max_pool2d(const PoolSize& s, const Tensor& x, Tensor& index, Tensor& y) {
  visit_types(s, x, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    const T* from = x.data<T>();
    I* places = index.defined() ? index.data<I>() : nullptr;
    T* to = y.data<T>();
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      const auto known = [&]<class B>(B) {
        pool(op, B::outputs(s), MaxPool<B>{Planes(s), B::passing(s), from, places, to});
      };
      if (visit_squares<T>(s, known) || visit_lines<T>(s, known)) return;
    }
    forward_of_any<T, I, decltype(count)>(s, from, places, to);
  });
}

void gpu::max_pool2d_backward(const PoolSize& s, const Tensor& index, const Tensor& dy,
                              Tensor& dx) {
  visit_types(s, dy, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    const I* places = index.data<I>();
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      const auto known = [&]<class B>(B) {
        pool(op, B::inputs(s), MaxPoolGather<B>{Planes(s), places, from, to});
      };
      if (visit_squares<T>(s, known) || visit_lines<T>(s, known)) return;
    }
    backward_of_any<T, I, decltype(count)>(s, places, from, to);
  });
}

}  // namespace ebb
