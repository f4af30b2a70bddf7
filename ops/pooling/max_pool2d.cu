#include "ebb/ops/pooling/max_pool2d.h"
#include "ebb/ops/pooling/window.cuh"

namespace ebb {
namespace {

using gpu::Block;
using gpu::Compute;
using gpu::Extents;
using gpu::narrow;
using gpu::Pack;
using gpu::Places;
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

// The same for outputs side by side: one, and of bf16 two, whose comparisons are one instruction
// that gives a mask of 16 bits for each.
template <class T>
struct Abreast {
  static constexpr int outputs = 1;
  Best<T> best;
  __device__ Abreast(const T* v, const int* place) : best{v[0], place[0]} {}
  __device__ void see(const T* v, int at) { best.see(v[0], at); }
  __device__ T value(int) const { return best.value; }
  __device__ int place(int) const { return best.place; }
};
template <>
struct Abreast<bf16> {
  static constexpr int outputs = 2;
  std::uint32_t values, places;

  __device__ Abreast(const bf16* v, const int* place)
      : values(pair(v)), places(place[0] | place[1] << 16) {}
  __device__ void see(const bf16* v, int at) {
    const std::uint32_t seen = pair(v);
    const std::uint32_t better =
        __hgt2_mask(two(seen), two(values)) | __hneu2_mask(two(seen), two(seen));
    values = (seen & better) | (values & ~better);
    places = (at * 0x10001u & better) | (places & ~better);
  }
  __device__ bf16 value(int i) const {
    bf16 y;
    y.bits = static_cast<std::uint16_t>(values >> 16 * i);
    return y;
  }
  __device__ int place(int i) const { return places >> 16 * i & 0xffff; }

 private:
  __device__ static std::uint32_t pair(const bf16* v) { return v[0].bits | v[1].bits << 16; }
  __device__ static __nv_bfloat162 two(const std::uint32_t& bits) {
    return reinterpret_cast<const __nv_bfloat162&>(bits);
  }
};

// Any windows: one output a thread.
template <class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool(Places places, Extents<Index> s, const T* x, I* index, T* y) {
  gpu::at_place<Index>(places, [&](std::int64_t plane, Index p, Index q) {
    const Index top = p * s.stride_h - s.padding_h;
    const Index left = q * s.stride_w - s.padding_w;
    const Index r0 = top < 0 ? (s.dilation_h - 1 - top) / s.dilation_h : 0;
    const Index c0 = left < 0 ? (s.dilation_w - 1 - left) / s.dilation_w : 0;
    const bool some = r0 < s.kernel_h && top + r0 * s.dilation_h < s.h && c0 < s.kernel_w &&
                      left + c0 * s.dilation_w < s.w;
    Best<Compute<T>> best{-INFINITY, some ? static_cast<int>(r0 * s.kernel_w + c0) : -1};
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
    const std::int64_t i = (plane * s.p + p) * s.q + q;
    y[i] = narrow<T>(best.value);
    if (index) index[i] = static_cast<I>(best.place);
  });
}

// Known windows: a block of outputs a thread.
template <bool packed, class Height, class Width, class T>
__global__ void __launch_bounds__(pool_threads)
    max_pool_block(Places places, Extents<int> s, const T* x, std::uint8_t* index, T* y) {
  using A = Abreast<T>;
  using B = Block<Height, Width, T>;
  gpu::at_place(places, [&](std::int64_t plane, int p, int b) {
    const int h = p * B::height - Height::padding, w = b * B::width;
    const T* corner = x + plane * s.h * s.w + (h * s.w + w);
    T in[Height::kernel][Width::before + B::width + Width::after];
#pragma unroll
    for (int r = 0; r < Height::kernel; ++r) {
      const int length = h + r >= 0 && h + r < s.h ? s.w : 0;
      gpu::load_line<packed, Width::before, B::width, Width::after>(corner + r * s.w, w, length,
                                                                    least<T>(), in[r]);
    }
    const int q = b * B::columns;
    Pack<T, B::columns> out;
    Pack<std::uint8_t, B::columns> place;
#pragma unroll
    for (int j = 0; j < B::columns; j += A::outputs) {
      const auto tap = [&](int k, T(&v)[A::outputs]) {
#pragma unroll
        for (int l = 0; l < A::outputs; ++l)
          v[l] = in[k / Width::kernel][(j + l) * Width::stride + k % Width::kernel];
      };
      T v[A::outputs];
      int first[A::outputs];  // that are inside the image
#pragma unroll
      for (int l = 0; l < A::outputs; ++l)
        first[l] = (p == 0 ? Height::padding * Width::kernel : 0) +
                   (b == 0 && j + l == 0 ? Width::padding : 0);
      tap(0, v);
      A best(v, first);
#pragma unroll
      for (int k = 1; k < Height::kernel * Width::kernel; ++k) {
        tap(k, v);
        best.see(v, k);
      }
#pragma unroll
      for (int l = 0; l < A::outputs; ++l) {
        out.v[j + l] = best.value(l);
        place.v[j + l] = static_cast<std::uint8_t>(best.place(l));
      }
    }
    const std::int64_t at = (plane * s.p + p) * s.q + q;
    gpu::store_line<packed>(y + at, q, s.q, out);
    if (index) gpu::store_line<packed>(index + at, q, s.q, place);
  });
}

// Each input asks the windows that see it whether it was their maximum.
template <class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_gather(Places places, Extents<Index> s, const I* index, const T* dy, T* dx) {
  gpu::at_place<Index>(places, [&](std::int64_t plane, Index h, Index w) {
    const gpu::Seen<Index> rows(h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.p);
    const gpu::Seen<Index> columns(w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.q);
    Compute<T> sum = 0;
    for (Index p = rows.first; p <= rows.last; ++p) {
      const Index down = h + s.padding_h - p * s.stride_h;
      if (down % s.dilation_h != 0) continue;
      for (Index q = columns.first; q <= columns.last; ++q) {
        const Index across = w + s.padding_w - q * s.stride_w;
        if (across % s.dilation_w != 0) continue;
        const Index place = down / s.dilation_h * s.kernel_w + across / s.dilation_w;
        const std::int64_t at = (plane * s.p + p) * s.q + q;
        if (index[at] == static_cast<I>(place)) sum += widen(dy[at]);
      }
    }
    dx[(plane * s.h + h) * s.w + w] = narrow<T>(sum);
  });
}

// The same for known windows: a block of inputs a thread, and all windows that see any of them.
template <bool packed, class Height, class Width, class T>
__global__ void __launch_bounds__(pool_threads)
    max_pool_gather_block(Places places, Extents<int> s, const std::uint8_t* index, const T* dy,
                          T* dx) {
  using B = Block<Height, Width, T>;
  constexpr int down = Height::earlier + 1 + Height::later;
  constexpr int across = Width::earlier + B::columns + Width::later;
  constexpr std::uint8_t nowhere = 255;
  gpu::at_place(places, [&](std::int64_t plane, int a, int b) {
    const int p = a - Height::earlier, q = b * B::columns;
    std::int64_t at = (plane * s.p + p) * s.q + q;
    T from[down][across];
    std::uint8_t place[down][across];
#pragma unroll
    for (int i = 0; i < down; ++i, at += s.q) {
      const int length = p + i >= 0 && p + i < s.p ? s.q : 0;
      gpu::load_line<packed, Width::earlier, B::columns, Width::later>(dy + at, q, length, T{},
                                                                       from[i]);
      gpu::load_line<packed, Width::earlier, B::columns, Width::later>(index + at, q, length,
                                                                       nowhere, place[i]);
    }
    const int h = a * B::height, w = b * B::width;
    T* to = dx + plane * s.h * s.w + (h * s.w + w);
#pragma unroll
    for (int r = 0; r < B::height; ++r, to += s.w) {
      if (h + r >= s.h) break;
      Pack<T, B::width> out;
#pragma unroll
      for (int c = 0; c < B::width; ++c) {
        Compute<T> sum = 0;
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
          for (int j = 0; j < across; ++j) {
            const int row = i - Height::earlier, column = j - Width::earlier;
            if (!Height::sees(row, r) || !Width::sees(column, c)) continue;
            const int here = Height::place(r, row) * Width::kernel + Width::place(c, column);
            if (place[i][j] == here) sum += widen(from[i][j]);
          }
        out.v[c] = narrow<T>(sum);
      }
      gpu::store_line<packed>(to, w, s.w, out);
    }
  });
}

// f(T{}, I{}, Index{}) with the types of values, places and counts.
template <class F>
void visit_types(const PoolSize& s, const Tensor& x, const Tensor& index, F&& f) {
  visit<float, double, bf16>(x.dtype(), "max_pool2d", [&](auto value) {
    const auto with_index = [&](auto place) {
      if (gpu::is_small(s))
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
  const auto f = gpu::in_packs<Height, Width>(s, x, y) ? max_pool_block<true, Height, Width, T>
                                                       : max_pool_block<false, Height, Width, T>;
  const Places places = Block<Height, Width, T>::outputs(s);
  gpu::launch("max_pool2d", f, places.blocks(), pool_threads, 0, places, Extents<int>(s), x, index,
              y);
}

template <class Height, class Width, class T>
void backward(const PoolSize& s, const std::uint8_t* index, const T* dy, T* dx) {
  const auto f = gpu::in_packs<Height, Width>(s, dx, dy)
                     ? max_pool_gather_block<true, Height, Width, T>
                     : max_pool_gather_block<false, Height, Width, T>;
  const Places places = Block<Height, Width, T>::inputs(s);
  gpu::launch("max_pool2d", f, places.blocks(), pool_threads, 0, places, Extents<int>(s), index, dy,
              dx);
}

}  // namespace

void gpu::max_pool2d(const PoolSize& s, const Tensor& x, Tensor& index, Tensor& y) {
  visit_types(s, x, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    using Index = decltype(count);
    I* places = index.defined() ? index.data<I>() : nullptr;
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      const auto known = [&](auto height, auto width) {
        forward<decltype(height), decltype(width)>(s, x.data<T>(), places, y.data<T>());
      };
      if (visit_squares(s, known) || visit_lines(s, known)) return;
    }
    const Places outputs(s.planes, s.p, s.q);
    launch("max_pool2d", max_pool<T, I, Index>, outputs.blocks(), pool_threads, 0, outputs,
           Extents<Index>(s), x.data<T>(), places, y.data<T>());
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
    const Places inputs(s.planes, s.h, s.w);
    launch("max_pool2d", max_pool_gather<T, I, Index>, inputs.blocks(), pool_threads, 0, inputs,
           Extents<Index>(s), index.data<I>(), dy.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
