#include "ebb/ops/pooling/max_pool2d.h"
#include "ebb/ops/pooling/wide.cuh"
#include "ebb/ops/pooling/window.cuh"

namespace ebb {
namespace {

using gpu::Block;
using gpu::Compute;
using gpu::Extents;
using gpu::narrow;
using gpu::Pack;
using gpu::Place;
using gpu::PlacesOf;
using gpu::pool_threads;
using gpu::widen;

template <class T>
__device__ T least() {  // −∞
  return gpu::narrow<T>(-INFINITY);
}

// The maximum so far and its place in the window; NaN wins. In PTX for f32: of tests for NaN that
// windows share, the compiler would keep the results in bits, and spend more on these than on all
// the rest.
template <class T>
struct Best {
  T value;
  int place;
  __device__ void see(T v, int at) {
    if constexpr (std::is_same_v<T, float>) {
      asm("{ .reg .pred p, q; setp.nan.f32 q, %2, %2; setp.gt.or.f32 p, %2, %0, q;"
          " selp.f32 %0, %2, %0, p; selp.s32 %1, %3, %1, p; }"
          : "+f"(value), "+r"(place)
          : "f"(v), "r"(at));
    } else if (v > value || v != v) {
      value = v;
      place = at;
    }
  }
};

// The maximum and its place among `taps`, of outputs side by side: tap(k) is element k of each of
// their windows, and `first` the first one inside the image.
template <class T, bool pairs>
struct Abreast {
  static constexpr int outputs = 1;
  Best<Compute<T>> best;

  template <int taps, class Tap>
  __device__ void see(const Tap& tap, const int (&first)[outputs]) {
    best = {widen(tap(0).v[0]), first[0]};
#pragma unroll
    for (int k = 1; k < taps; ++k) best.see(widen(tap(k).v[0]), k);
  }
  __device__ T value(int) const { return narrow<T>(best.value); }
  __device__ int place(int) const { return best.place; }
};

// Two of bf16 in a word: their maximum takes one instruction a tap, and finding it again two, as
// comparisons give a mask of 16 bits for each. Windows of which that is not true, those with NaN or
// nothing but -inf, are seen tap by tap.
template <>
struct Abreast<bf16, true> {
  static constexpr int outputs = 2;
  std::uint32_t values, places;

  template <int taps, class Tap>
  __device__ void see(const Tap& tap, const int (&first)[outputs]) {
    values = word(tap(0));
#pragma unroll
    for (int k = 1; k < taps; ++k) {
      const __nv_bfloat162 larger = __hmax2_nan(two(values), two(word(tap(k))));
      values = reinterpret_cast<const std::uint32_t&>(larger);
    }
    constexpr std::uint32_t infinity = 0x7f807f80;
    if (__hlt2_mask(__habs2(two(values)), two(infinity)) == ~0u) {
      places = (taps - 1) * 0x10001u;
#pragma unroll
      for (int k = taps - 2; k >= 0; --k)
        choose(__heq2_mask(two(word(tap(k))), two(values)), k * 0x10001u, places);
      return;
    }
    values = word(tap(0));
    places = first[0] | first[1] << 16;
#pragma unroll
    for (int k = 1; k < taps; ++k) {
      const std::uint32_t seen = word(tap(k));
      const std::uint32_t better =
          __hgt2_mask(two(seen), two(values)) | __hneu2_mask(two(seen), two(seen));
      choose(better, seen, values);
      choose(better, k * 0x10001u, places);
    }
  }
  __device__ bf16 value(int i) const {
    bf16 y;
    y.bits = static_cast<std::uint16_t>(values >> 16 * i);
    return y;
  }
  __device__ int place(int i) const { return places >> 16 * i & 0xffff; }

 private:
  __device__ static std::uint32_t word(const Pack<bf16, 2>& v) {
    return __byte_perm(v.v[0].bits, v.v[1].bits, 0x5410);
  }
  __device__ static __nv_bfloat162 two(const std::uint32_t& bits) {
    return reinterpret_cast<const __nv_bfloat162&>(bits);
  }
  __device__ static void choose(std::uint32_t mask, std::uint32_t then, std::uint32_t& otherwise) {
    otherwise = (then & mask) | (otherwise & ~mask);
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
    max_pool(PlacesOf<Index> places, Extents<Index> s, const T* x, I* index, T* y) {
  gpu::at_place(places, [&](std::int64_t plane, Index p, Index q) {
    const Index top = p * s.stride_h - s.padding_h;
    const Index left = q * s.stride_w - s.padding_w;
    const Index r0 = first_inside(top, s.dilation_h), c0 = first_inside(left, s.dilation_w);
    const bool some = r0 < s.kernel_h && top + r0 * s.dilation_h < s.h && c0 < s.kernel_w &&
                      left + c0 * s.dilation_w < s.w;
    Best<Compute<T>> best{-INFINITY, some ? static_cast<int>(r0 * s.kernel_w + c0) : -1};
    if constexpr (kernel > 0) {
      const T* const corner = x + plane * s.image + (top * s.w + left);
      T in[kernel][kernel];
#pragma unroll
      for (int r = 0; r < kernel; ++r)
#pragma unroll
        for (int c = 0; c < kernel; ++c) {
          const Index h = r * s.dilation_h, w = c * s.dilation_w;
          const bool there = top + h >= 0 && top + h < s.h && left + w >= 0 && left + w < s.w;
          in[r][c] = there ? corner[h * s.w + w] : least<T>();
        }
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

// What the maximum of a window has the largest of: a value, the earlier of equal ones, NaN before
// all, and the last of those.
__device__ inline std::uint64_t rank(float v, int place) {
  constexpr std::uint32_t sign = 1u << 31;
  if (v != v) return ~0ull << 32 | static_cast<std::uint32_t>(place);
  const auto bits = __float_as_uint(v + 0.f);  // of zeros, one
  const std::uint32_t order = bits & sign ? ~bits : bits | sign;
  return std::uint64_t{order} << 32 | ~static_cast<std::uint32_t>(place);
}
__device__ inline int place_of(std::uint64_t rank) {
  const auto low = static_cast<std::uint32_t>(rank);
  return static_cast<int>(rank >> 32 == ~0u ? low : ~low);
}

// Windows of many elements that hardly overlap: a group of threads an output.
template <int group, class T, class I>
__global__ void __launch_bounds__(pool_threads)
    max_pool_wide(gpu::Wide wide, Extents<int> s, const T* x, I* index, T* y) {
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
  best = gpu::group_reduce<group>(best, gpu::Max{});
  if (!at.there || !wide.leader<group>()) return;
  const int place = place_of(best);
  const std::int64_t i = std::int64_t{at.plane} * s.output + (at.row * s.q + at.column);
  y[i] = plane[(top + place / s.kernel_w) * s.w + left + place % s.kernel_w];
  if (index) index[i] = static_cast<I>(place);
}

// Known windows: a block of outputs a thread.
template <bool packed, class Height, class Width, class T>
struct MaxPool {
  using B = Block<packed, Height, Width, T>;
  using A = Abreast<T, B::columns % 2 == 0>;
  using Window = T[Height::kernel][Width::before + B::width + Width::after];
  Extents<int> s;
  bool passing;
  const T* x;
  std::uint8_t* index;
  T* y;

  __device__ void load(const Place<int>& at, Window& in) const {
    const int h = at.row * B::height - Height::padding, w = at.column * B::width;
    const T* corner = x + std::int64_t{at.plane} * s.image + (h * s.w + w);
#pragma unroll
    for (int r = 0; r < Height::kernel; ++r) {
      const int length = h + r >= 0 && h + r < s.h ? s.w : 0;
      gpu::load_line<packed, Width::before, B::width, Width::after>(corner + r * s.w, w, length,
                                                                    least<T>(), in[r], passing);
    }
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
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
      best.template see<Height::kernel * Width::kernel>(tap, first);
#pragma unroll
      for (int l = 0; l < A::outputs; ++l) {
        out.v[j + l] = best.value(l);
        place.v[j + l] = static_cast<std::uint8_t>(best.place(l));
      }
    }
    const int q = at.column * B::columns;
    const std::int64_t to = std::int64_t{at.plane} * s.output + (at.row * s.q + q);
    gpu::store_line<packed>(y + to, q, s.q, out);
    if (index) gpu::store_line<packed>(index + to, q, s.q, place);
  }
};

// Each input asks the windows that see it whether it was their maximum; a thread has `width` inputs
// side by side.
template <int width, bool apart, class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_gather(PlacesOf<Index> places, Extents<Index> s, gpu::AnyWindows<Index> windows,
                    const I* index, const T* dy, T* dx) {
  gpu::at_place(places, [&](std::int64_t plane, Index h, Index pack) {
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
          gpu::narrow<T, width>(sum));
  });
}

// The same for known windows: a block of inputs a thread, and all windows that see any of them.
template <bool packed, class Height, class Width, class T>
struct MaxPoolGather {
  using B = Block<packed, Height, Width, T>;
  static constexpr int down = Height::earlier + 1 + Height::later;
  static constexpr int across = Width::earlier + B::columns + Width::later;
  static constexpr bool apart = Height::kernel <= Height::stride && Width::kernel <= Width::stride;
  struct Window {
    T from[down][across];
    std::uint8_t place[down][across];
  };
  Extents<int> s;
  const std::uint8_t* index;
  const T* dy;
  T* dx;

  __device__ void load(const Place<int>& at, Window& in) const {
    constexpr std::uint8_t nowhere = 255;
    const int p = at.row - Height::earlier, q = at.column * B::columns;
    std::int64_t from = std::int64_t{at.plane} * s.output + (p * s.q + q);
#pragma unroll
    for (int i = 0; i < down; ++i, from += s.q) {
      const int length = p + i >= 0 && p + i < s.p ? s.q : 0;
      gpu::load_line<packed, Width::earlier, B::columns, Width::later>(dy + from, q, length, T{},
                                                                       in.from[i]);
      gpu::load_line<packed, Width::earlier, B::columns, Width::later>(index + from, q, length,
                                                                       nowhere, in.place[i]);
    }
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    const int h = at.row * B::height, w = at.column * B::width;
    T* to = dx + std::int64_t{at.plane} * s.image + (h * s.w + w);
#pragma unroll
    for (int r = 0; r < B::height; ++r, to += s.w) {
      if (h + r >= s.h) break;
      Pack<T, B::width> out;
#pragma unroll
      for (int c = 0; c < B::width; ++c) out.v[c] = gradient(in, r, c);
      gpu::store_line<packed>(to, w, s.w, out);
    }
  }

 private:
  // Of input (r, c) of the block.
  __device__ T gradient(const Window& in, int r, int c) const {
    Compute<T> sum = 0;
    T one{};
#pragma unroll
    for (int i = 0; i < down; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j) {
        const int row = i - Height::earlier, column = j - Width::earlier;
        if (!Height::sees(row, r) || !Width::sees(column, c)) continue;
        const int here = Height::place(r, row) * Width::kernel + Width::place(c, column);
        if (in.place[i][j] != here) continue;
        sum += widen(in.from[i][j]);
        one = in.from[i][j];
      }
    return apart ? one : narrow<T>(sum);
  }
};

// f(T{}, I{}, Index{}) with the types of values, places and counts.
template <class F>
void visit_types(const PoolSize& s, const Tensor& x, const Tensor& index, F&& f) {
  visit<float, double, bf16>(x.dtype(), "max_pool2d", [&](auto value) {
    const auto with_index = [&](auto place) {
      if (gpu::is_few(s))
        f(value, place, int{});
      else
        f(value, place, std::int64_t{});
    };
    if (index.defined() && index.dtype() == Dtype::i32)
      with_index(std::int32_t{});
    else
      with_index(std::uint8_t{});
  });
}

template <class Height, class Width, class T>
void forward(const PoolSize& s, const T* x, std::uint8_t* index, T* y) {
  const auto go = [&]<bool packed>() {
    gpu::pool("max_pool2d", Block<packed, Height, Width, T>::outputs(s),
              MaxPool<packed, Height, Width, T>{Extents<int>(s),
                                                gpu::is_passing<Height, Width, T>(s), x, index, y});
  };
  gpu::in_packs<Height, Width>(s, x, y) ? go.template operator()<true>()
                                        : go.template operator()<false>();
}

template <class Height, class Width, class T>
void backward(const PoolSize& s, const std::uint8_t* index, const T* dy, T* dx) {
  const auto go = [&]<bool packed>() {
    gpu::pool("max_pool2d", Block<packed, Height, Width, T>::inputs(s),
              MaxPoolGather<packed, Height, Width, T>{Extents<int>(s), index, dy, dx});
  };
  gpu::in_packs<Height, Width>(s, dx, dy) ? go.template operator()<true>()
                                          : go.template operator()<false>();
}

template <class T, class I, class Index>
void forward_of_any(const PoolSize& s, const T* x, I* index, T* y) {
  if constexpr (std::is_same_v<Index, int> && sizeof(T) <= 4)
    if (gpu::is_wide(s))
      return gpu::visit_groups(s, [&]<int group>() {
        const gpu::Wide wide(s);
        launch("max_pool2d", max_pool_wide<group, T, I>, wide.blocks(group), pool_threads, 0, wide,
               Extents<int>(s), x, index, y);
      });
  const PlacesOf<Index> outputs(s.planes, s.p, s.q);
  const int threads = gpu::threads_for(s.planes * s.p * s.q);
  const auto go = [&]<int kernel>() {
    launch("max_pool2d", max_pool<kernel, T, I, Index>, outputs.blocks(threads), threads, 0,
           outputs, Extents<Index>(s), x, index, y);
  };
  if constexpr (sizeof(I) == 1) return gpu::visit_kernel(s, go);
  go.template operator()<0>();
}

}  // namespace

void gpu::max_pool2d(const PoolSize& s, const Tensor& x, Tensor& index, Tensor& y) {
  visit_types(s, x, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    I* places = index.defined() ? index.data<I>() : nullptr;
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      const auto known = [&](auto height, auto width) {
        forward<decltype(height), decltype(width)>(s, x.data<T>(), places, y.data<T>());
      };
      if (visit_squares(s, known) || visit_lines(s, known)) return;
    }
    forward_of_any<T, I, decltype(count)>(s, x.data<T>(), places, y.data<T>());
  });
}

void gpu::max_pool2d_backward(const PoolSize& s, const Tensor& index, const Tensor& dy,
                              Tensor& dx) {
  visit_types(s, dy, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    using Index = decltype(count);
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      const auto known = [&](auto height, auto width) {
        backward<decltype(height), decltype(width)>(s, index.data<I>(), dy.data<T>(), dx.data<T>());
      };
      if (visit_squares(s, known) || visit_lines(s, known)) return;
    }
    gpu::visit_gather(s, dx.data<T>(), [&]<int width, bool apart>() {
      const PlacesOf<Index> inputs(s.planes, s.h, s.w / width);
      const int threads = gpu::threads_for(s.planes * s.h * s.w / width);
      launch("max_pool2d", max_pool_gather<width, apart, T, I, Index>, inputs.blocks(threads),
             threads, 0, inputs, Extents<Index>(s), gpu::AnyWindows<Index>(s), index.data<I>(),
             dy.data<T>(), dx.data<T>());
    });
  });
}

}  // namespace ebb
