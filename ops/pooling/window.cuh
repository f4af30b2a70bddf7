// Sliding windows on the GPU: who computes which elements, and what their windows see.
//
// Where the window is known when the kernel is compiled, a thread makes a block of adjacent
// elements from rows that it loads 16 bytes at a time: windows that overlap share its registers.
#pragma once
#include <algorithm>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/divider.cuh"
#include "ebb/ops/packs.cuh"
#include "ebb/ops/pooling/window.h"

namespace ebb::gpu {

inline constexpr int pool_threads = 256;  // of a block, at most

// The fewer there are, the more multiprocessors they should be spread over.
inline int threads_for(std::int64_t places) { return places <= 1 << 16 ? 64 : pool_threads; }

template <class Index>
struct Place {
  bool there;
  Index plane, row, column;
};

// planes × rows × columns, counted in words of 32 bits where that suffices.
template <class Word>
struct Places {
  Word size;
  WordDivider<Word> rows, columns;

  Places(std::int64_t planes, std::int64_t rows, std::int64_t columns)
      : size(static_cast<Word>(planes * rows * columns)),
        rows(std::max<std::int64_t>(1, rows)),
        columns(std::max<std::int64_t>(1, columns)) {}
  dim3 blocks(int threads) const {
    return dim3(static_cast<unsigned>(divide_up(size, static_cast<Word>(threads))));
  }
  __device__ auto operator[](Word i) const {
    using Index = std::make_signed_t<Word>;
    const Word line = columns.quotient(i);
    const Word plane = rows.quotient(line);
    return Place<Index>{i < size, static_cast<Index>(plane),
                        static_cast<Index>(line - plane * rows.d),
                        static_cast<Index>(i - line * columns.d)};
  }
};
using FewPlaces = Places<std::uint32_t>;  // less than 2³¹
template <class Index>
using PlacesOf = Places<std::make_unsigned_t<Index>>;

// Calls f(plane, row, column) for the thread's place. Inside a plane an int can mostly count.
template <class Word, class F>
__device__ void at_place(const Places<Word>& places, const F& f) {
  const auto at = places[blockIdx.x * Word{blockDim.x} + threadIdx.x];
  if (at.there) f(std::int64_t{at.plane}, at.row, at.column);
}

// Along one side of an image: `kernel` places every `stride`, the first `padding` before the image.
template <int kernel_, int stride_, int padding_>
struct Side {
  static constexpr int kernel = kernel_, stride = stride_, padding = padding_;
  // n windows see n · stride places, and these more around them.
  static constexpr int before = padding;
  static constexpr int after = std::max(0, kernel - stride - padding);
  // n · stride places are seen by n windows, and these more around them.
  static constexpr int earlier = (kernel - 1 - padding) / stride;
  static constexpr int later = (stride - 1 + padding) / stride;
  // The place in window `w` of place `at`, both counted from the same beginning.
  static constexpr int place(int at, int w) { return at + padding - w * stride; }
  static constexpr bool sees(int w, int at) { return place(at, w) >= 0 && place(at, w) < kernel; }
};

// What a thread of a kernel for such windows works on: `columns` windows side by side. Rows of them
// would read less again, but from the nearest cache, and fewer threads would be at work. Where
// lines are not made of packs, it is few, so that neighbouring threads are at close elements.
template <bool packed, class Height, class Width, class T>
struct Block {
  static constexpr int columns = packed               ? std::max(1, pack_size<T> / Width::stride)
                                 : Width::stride == 1 ? 4
                                                      : 1;
  static constexpr int height = Height::stride;  // of the image
  static constexpr int width = columns * Width::stride;

  // The blocks that cover all outputs, or the whole image.
  static FewPlaces outputs(const PoolSize& s) {
    return {s.planes, s.p, divide_up<std::int64_t>(s.q, columns)};
  }
  static FewPlaces inputs(const PoolSize& s) {
    return {s.planes, divide_up<std::int64_t>(s.h, height), divide_up<std::int64_t>(s.w, width)};
  }
};

template <class Body>
__global__ void __launch_bounds__(pool_threads) pool_kernel(FewPlaces places, Body body) {
  const Place<int> at = places[blockIdx.x * blockDim.x + threadIdx.x];
  if (!at.there) return;
  typename Body::Window window;
  body.load(at, window);
  body.store(at, window);
}

// For each place, body.load(place, window) and then body.store(place, window).
template <class Body>
void pool(std::string_view op, const FewPlaces& places, const Body& body) {
  const int threads = threads_for(places.size);
  launch(op, pool_kernel<Body>, places.blocks(threads), threads, 0, places, body);
}

// Whether an image of which windows apart read all once should leave the caches first, for what
// else they have. Where it is much larger than they are, that only costs time.
template <class Height, class Width, class T>
bool is_passing(const PoolSize& s) {
  const std::int64_t bytes = s.planes * s.h * s.w * std::int64_t{sizeof(T)};
  return Height::kernel <= Height::stride && Width::kernel <= Width::stride && bytes >= 16 << 20 &&
         bytes < 512 << 20;
}

// n elements from `at` on, `none` unless they are there: as words, which a load may leave as they
// are where half words would have to be put together again.
template <int n, class T>
__device__ void load_pack(const T* at, bool there, bool passing, T none, T* to) {
  if constexpr (sizeof(T) < 4 && n * sizeof(T) % 4 == 0) {
    constexpr int in_word = 4 / sizeof(T);
    Pack<std::uint32_t, n / in_word> words;
#pragma unroll
    for (int i = 0; i < n / in_word; ++i) {
      words.v[i] = 0;
#pragma unroll
      for (int j = 0; j < in_word; ++j)
        words.v[i] |= std::uint32_t{__builtin_bit_cast(Word<sizeof(T)>, none)}
                      << (8 * sizeof(T) * j);
    }
    if (there) words = load(reinterpret_cast<const Pack<std::uint32_t, n / in_word>*>(at), passing);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const auto bits = words.v[j / in_word] >> (8 * sizeof(T) * (j % in_word));
      to[j] = __builtin_bit_cast(T, static_cast<Word<sizeof(T)>>(bits));
    }
  } else {
    Pack<T, n> pack;
#pragma unroll
    for (int j = 0; j < n; ++j) pack.v[j] = none;
    if (there) pack = load(reinterpret_cast<const Pack<T, n>*>(at), passing);
#pragma unroll
    for (int j = 0; j < n; ++j) to[j] = pack.v[j];
  }
}

// n elements of a line of `length` and some more around them; `none` where there are none. They lie
// from `at` on, at place `first` of the line. Packed lines are made of whole packs of n.
template <bool packed, int before, int n, int after, class T>
__device__ void load_line(const T* at, int first, int length, T none, T (&to)[before + n + after],
                          bool passing = false) {
  const auto one = [&](int j) { return first + j >= 0 && first + j < length ? at[j] : none; };
#pragma unroll
  for (int j = 0; j < before; ++j) to[j] = one(j - before);
  if constexpr (packed) {
    load_pack<n>(at, first < length, passing, none, to + before);
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j) to[before + j] = one(j);
  }
#pragma unroll
  for (int j = 0; j < after; ++j) to[before + n + j] = one(n + j);
}

// The reverse, of what lies inside the line.
template <bool packed, int n, class T>
__device__ void store_line(T* at, int first, int length, const Pack<T, n>& from) {
  if constexpr (packed) {
    if (first < length) store(reinterpret_cast<Pack<T, n>*>(at), from);
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (first + j < length) at[j] = from.v[j];
  }
}

// Whether the rows of the image and of the output are made of whole packs.
template <class Height, class Width, class T>
bool in_packs(const PoolSize& s, const T* image, const T* output) {
  using B = Block<true, Height, Width, T>;
  return s.w % B::width == 0 && s.q % B::columns == 0 &&
         reinterpret_cast<std::uintptr_t>(image) % sizeof(Pack<T, B::width>) == 0 &&
         reinterpret_cast<std::uintptr_t>(output) % sizeof(Pack<T, B::columns>) == 0;
}

// Whether an int can count the places of a plane, with room for a window.
inline bool is_small(const PoolSize& s) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  return s.h * s.w < most && s.p * s.q < most &&
         std::max(s.kernel_h * s.dilation_h, s.stride_h) < most &&
         std::max(s.kernel_w * s.dilation_w, s.stride_w) < most;
}

// Whether an int can count the places of all planes as well.
inline bool is_few(const PoolSize& s) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  return is_small(s) && s.planes * std::max(s.h * s.w, s.p * s.q) < most;
}

// Whether windows are those of the two sides, and few enough for FewPlaces.
template <class Height, class Width>
bool fits(const PoolSize& s) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  const std::int64_t blocks =
      divide_up<std::int64_t>(s.h, Height::stride) * divide_up<std::int64_t>(s.w, Width::stride);
  return s.planes * std::max(blocks, s.p * s.q) < most && s.kernel_h == Height::kernel &&
         s.stride_h == Height::stride && s.padding_h == Height::padding &&
         s.kernel_w == Width::kernel && s.stride_w == Width::stride &&
         s.padding_w == Width::padding && s.dilation_h == 1 && s.dilation_w == 1 && is_small(s);
}

// f(Side{}, Side{}) if the windows are those of the sides.
template <class Height, class Width, class F>
bool visit_sides(const PoolSize& s, const F& f) {
  if (!fits<Height, Width>(s)) return false;
  f(Height{}, Width{});
  return true;
}

// The same for the windows that have kernels of their own, of images and of lines.
template <class F>
bool visit_squares(const PoolSize& s, const F& f) {
  using Pairs = Side<2, 2, 0>;
  using Overlapping = Side<3, 2, 1>;
  using Unpadded = Side<3, 2, 0>;
  using Dense = Side<3, 1, 1>;
  return visit_sides<Pairs, Pairs>(s, f) || visit_sides<Overlapping, Overlapping>(s, f) ||
         visit_sides<Unpadded, Unpadded>(s, f) || visit_sides<Dense, Dense>(s, f);
}
template <class F>
bool visit_lines(const PoolSize& s, const F& f) {
  using One = Side<1, 1, 0>;
  return visit_sides<One, Side<2, 2, 0>>(s, f) || visit_sides<One, Side<3, 2, 1>>(s, f) ||
         visit_sides<One, Side<3, 1, 1>>(s, f);
}

// f.operator()<kernel>() with the extent of square windows, if few elements are in one, else 0.
template <class F>
void visit_kernel(const PoolSize& s, const F& f) {
  const std::int64_t kernel = s.kernel_h == s.kernel_w ? s.kernel_h : 0;
  if (kernel == 2) return f.template operator()<2>();
  if (kernel == 3) return f.template operator()<3>();
  if (kernel == 4) return f.template operator()<4>();
  if (kernel == 5) return f.template operator()<5>();
  f.template operator()<0>();
}

// Along one side of any windows; an unsigned Word divides.
template <class Index>
struct Steps {
  using Word = std::make_unsigned_t<Index>;
  Index kernel, padding, windows;
  WordDivider<Word> stride, dilation;

  // f(window, tap) for the windows that see place x, at which of their places: at most one, where
  // they are `apart`.
  template <bool apart, class F>
  __device__ void each(Index x, const F& f) const {
    const auto by = static_cast<Index>(stride.d), step = static_cast<Index>(dilation.d);
    Index last = static_cast<Index>(stride.quotient(x + padding));
    if constexpr (apart) {
      const Index tap = x + padding - last * by;
      if (tap < kernel && last < windows) f(last, tap);
    } else {
      const Index reach = x + padding - (kernel - 1) * step;
      const Index first = reach > 0 ? static_cast<Index>(stride.quotient(reach + by - 1)) : 0;
      if (last >= windows) last = windows - 1;
      for (Index i = first; i <= last; ++i) {
        const Index distance = x + padding - i * by;
        const auto tap = static_cast<Index>(dilation.quotient(distance));
        if (tap * step == distance) f(i, tap);
      }
    }
  }
};
template <class Index>
struct AnyWindows {
  Steps<Index> down, across;

  explicit AnyWindows(const PoolSize& s)
      : down{static_cast<Index>(s.kernel_h), static_cast<Index>(s.padding_h),
             static_cast<Index>(s.p), WordDivider<std::make_unsigned_t<Index>>(s.stride_h),
             WordDivider<std::make_unsigned_t<Index>>(s.dilation_h)},
        across{static_cast<Index>(s.kernel_w), static_cast<Index>(s.padding_w),
               static_cast<Index>(s.q), WordDivider<std::make_unsigned_t<Index>>(s.stride_w),
               WordDivider<std::make_unsigned_t<Index>>(s.dilation_w)} {}
};

// f.operator()<width, apart>() with how many inputs side by side a thread can have, and whether
// each is seen once at most.
template <class T, class F>
void visit_gather(const PoolSize& s, const T* image, const F& f) {
  constexpr int width = 4;
  const bool packed =
      s.w % width == 0 && reinterpret_cast<std::uintptr_t>(image) % sizeof(Pack<T, width>) == 0;
  const bool apart = s.kernel_h <= s.stride_h && s.kernel_w <= s.stride_w && s.dilation_h == 1 &&
                     s.dilation_w == 1;
  if (packed && apart) return f.template operator()<width, true>();
  if (packed) return f.template operator()<width, false>();
  if (apart) return f.template operator()<1, true>();
  f.template operator()<1, false>();
}

// The extents of a plane and its windows, as narrow as counting allows.
template <class Index>
struct Extents {
  Index h, w, p, q;
  Index image, output;  // places of a plane
  Index kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  explicit Extents(const PoolSize& s)
      : h(static_cast<Index>(s.h)),
        w(static_cast<Index>(s.w)),
        p(static_cast<Index>(s.p)),
        q(static_cast<Index>(s.q)),
        image(static_cast<Index>(s.h * s.w)),
        output(static_cast<Index>(s.p * s.q)),
        kernel_h(static_cast<Index>(s.kernel_h)),
        kernel_w(static_cast<Index>(s.kernel_w)),
        stride_h(static_cast<Index>(s.stride_h)),
        stride_w(static_cast<Index>(s.stride_w)),
        padding_h(static_cast<Index>(s.padding_h)),
        padding_w(static_cast<Index>(s.padding_w)),
        dilation_h(static_cast<Index>(s.dilation_h)),
        dilation_w(static_cast<Index>(s.dilation_w)) {}
};

}  // namespace ebb::gpu
