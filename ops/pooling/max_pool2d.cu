#include "ebb/ops/pooling/any.cuh"
#include "ebb/ops/pooling/best.cuh"
#include "ebb/ops/pooling/known.cuh"
#include "ebb/ops/pooling/max_pool2d.h"
#include "ebb/ops/pooling/wide.cuh"

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

// The first row or column of a window that begins at `at` inside the image.
template <class Index>
__device__ Index first_inside(Index at, Index dilation) {
  return at < 0 ? (dilation - 1 - at) / dilation : 0;
}

// Any windows: one output a thread, of windows of kernel² elements, or any if that is 0.
template <int kernel, class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_any(PlacesOf<Index> places, Extents<Index> s, const T* x, I* index, T* y) {
  at_place(places, [&](std::int64_t plane, Index p, Index q) {
    const Index top = p * s.stride_h - s.padding_h;
    const Index left = q * s.stride_w - s.padding_w;
    const Index r0 = first_inside(top, s.dilation_h), c0 = first_inside(left, s.dilation_w);
    const bool some = r0 < s.kernel_h && top + r0 * s.dilation_h < s.h && c0 < s.kernel_w &&
                      left + c0 * s.dilation_w < s.w;
    Best<Compute<T>> best{-INFINITY, some ? static_cast<int>(r0 * s.kernel_w + c0) : -1};
    if constexpr (kernel > 0) {
      T in[kernel][kernel];
      load_window(s, x + plane * s.image, top, left, least<T>(), in);
#pragma unroll
      for (int k = 0; k < kernel * kernel; ++k) best.see(widen(in[k / kernel][k % kernel]), k);
    } else {
      for (Index r = r0; r < s.kernel_h; ++r) {
        const Index h = top + r * s.dilation_h;
        if (h >= s.h) break;
        const T* row = x + (plane * s.h + h) * s.w;
        for (Index c = c0; c < s.kernel_w; ++c) {
          const Index w = left + c * s.dilation_w;
          if (w >= s.w) break;
          best.see(widen(row[w]), static_cast<int>(r * s.kernel_w + c));
        }
      }
    }
    const std::int64_t i = plane * s.output + (p * s.q + q);
    y[i] = narrow<T>(best.value);
    if (index) index[i] = static_cast<I>(best.place);
  });
}

// Any windows, backward: a thread has `width` inputs side by side.
template <int width, bool apart, class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_gather(PlacesOf<Index> places, Extents<Index> s, AnyWindows<Index> windows,
                    const I* index, const T* dy, T* dx) {
  at_place(places, [&](std::int64_t plane, Index h, Index pack) {
    const Index w = pack * width;
    Compute<T> sum[width] = {};
    windows.down.template each<apart>(h, [&](Index p, Index r) {
      const std::int64_t line = plane * s.output + p * s.q;
#pragma unroll
      for (int j = 0; j < width; ++j)
        windows.across.template each<apart>(w + j, [&](Index q, Index c) {
          const Compute<T> of_window = widen(dy[line + q]);
          if (index[line + q] == static_cast<I>(r * s.kernel_w + c)) sum[j] += of_window;
        });
    });
    store(reinterpret_cast<Pack<T, width>*>(dx + plane * s.image + (h * s.w + w)),
          narrow<T, width>(sum));
  });
}

// Windows of many elements that hardly overlap: a group of threads an output.
template <int group, class T, class I>
__global__ void __launch_bounds__(pool_threads)
    max_pool_wide(Wide wide, Extents<int> s, const T* x, I* index, T* y) {
  const auto at = wide.place<group>();
  const int top = at.row * s.stride_h - s.padding_h, left = at.column * s.stride_w - s.padding_w;
  const T* const plane = x + std::int64_t{at.plane} * s.image;
  std::uint64_t best = 0;
  if (at.there)
    wide.each<group>(max(top, 0), min(top + s.kernel_h, s.h), max(left, 0),
                     min(left + s.kernel_w, s.w), [&](int h, int w) {
                       const int place = (h - top) * s.kernel_w + (w - left);
                       best = max(best, rank(widen(plane[h * s.w + w]), place));
                     });
  best = group_reduce<group>(best, Max{});
  if (!at.there || !wide.leader<group>()) return;
  const int place = place_of(best);
  const std::int64_t i = std::int64_t{at.plane} * s.output + (at.row * s.q + at.column);
  y[i] = plane[(top + place / s.kernel_w) * s.w + left + place % s.kernel_w];
  if (index) index[i] = static_cast<I>(place);
}

template <class T, class I, class Index>
void forward_of_any(const PoolSize& s, const T* x, I* index, T* y) {
  if constexpr (std::is_same_v<Index, int> && sizeof(T) <= 4)
    if (is_wide(s))
      return visit_groups(s, [&]<int group>() {
        const Wide wide(s);
        launch(op, max_pool_wide<group, T, I>, wide.blocks(group), pool_threads, 0, wide,
               Extents<int>(s), x, index, y);
      });
  const PlacesOf<Index> outputs(s.planes, s.p, s.q);
  const auto go = [&]<int kernel>() {
    launch(op, max_pool_any<kernel, T, I, Index>, outputs.blocks(), outputs.threads(), 0, outputs,
           Extents<Index>(s), x, index, y);
  };
  if constexpr (sizeof(I) == 1) return visit_kernel(s, go);
  go.template operator()<0>();
}

template <class T, class I, class Index>
void backward_of_any(const PoolSize& s, const I* index, const T* dy, T* dx) {
  visit_gather(s, dx, [&]<int width, bool apart>() {
    const PlacesOf<Index> inputs(s.planes, s.h, s.w / width);
    launch(op, max_pool_gather<width, apart, T, I, Index>, inputs.blocks(), inputs.threads(), 0,
           inputs, Extents<Index>(s), AnyWindows<Index>(s), index, dy, dx);
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
      if (visit_squares(s, from, to, known) || visit_lines(s, from, to, known)) return;
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
      if (visit_squares(s, to, from, known) || visit_lines(s, to, from, known)) return;
    }
    backward_of_any<T, I, decltype(count)>(s, places, from, to);
  });
}

}  // namespace ebb
