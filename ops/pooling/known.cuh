// Windows that are known when the kernel is compiled: a thread makes a block of adjacent elements
// from rows that it loads 16 bytes at a time, and windows that overlap share its registers.
//
//   struct Body {                                 of a Block B
//     using Window = Seen<B>;                     or Seers<B, V>: what it has in registers
//     __device__ void load(const Place<int>& at, Window& in) const …
//     __device__ void store(const Place<int>& at, const Window& in) const …
//   };
//   pool("max_pool2d", B::outputs(size), Body{…});
#pragma once
#include "ebb/ops/packs.cuh"
#include "ebb/ops/pooling/places.cuh"

namespace ebb::gpu {

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

// What a thread works on: `columns` windows side by side, or the inputs that they begin at. Rows of
// windows would read less again, but from the nearest cache, and fewer threads would be at work.
// `packed`: lines are made of packs. Others have few windows a thread, so that neighbouring threads
// are at close elements.
template <bool packed_, class Height_, class Width_, class T_>
struct Block {
  using Height = Height_;
  using Width = Width_;
  using T = T_;
  static constexpr bool packed = packed_;
  static constexpr bool apart = Height::kernel <= Height::stride && Width::kernel <= Width::stride;
  static constexpr int taps = Height::kernel * Width::kernel;
  static constexpr int columns = packed               ? std::max(1, pack_size<T> / Width::stride)
                                 : Width::stride == 1 ? 4
                                                      : 1;
  static constexpr int height = Height::stride;  // of the image
  static constexpr int width = columns * Width::stride;
  // The windows that see any of the block's inputs.
  static constexpr int down = Height::earlier + 1 + Height::later;
  static constexpr int across = Width::earlier + columns + Width::later;

  // The blocks that cover all outputs, or the whole image.
  static FewPlaces outputs(const PoolSize& s) {
    return {s.planes, s.p, divide_up<std::int64_t>(s.q, columns)};
  }
  static FewPlaces inputs(const PoolSize& s) {
    return {s.planes, divide_up<std::int64_t>(s.h, height), divide_up<std::int64_t>(s.w, width)};
  }
  // Whether an image that is read once should leave the caches first, for what else they have.
  // Where it is much larger than they are, that only costs time.
  static bool passing(const PoolSize& s) {
    const std::int64_t bytes = s.planes * s.h * s.w * std::int64_t{sizeof(T)};
    return apart && bytes >= 16 << 20 && bytes < 512 << 20;
  }
};

struct Planes {
  int h, w, p, q;
  explicit Planes(const PoolSize& s)
      : h(static_cast<int>(s.h)),
        w(static_cast<int>(s.w)),
        p(static_cast<int>(s.p)),
        q(static_cast<int>(s.q)) {}
};

// What the block's windows see of the image, and of the windows that see its inputs an element.
template <class B>
using Seen = typename B::T[B::Height::kernel][B::Width::before + B::width + B::Width::after];
template <class B, class V>
using Seers = V[B::down][B::across];

template <class Body>
__global__ void __launch_bounds__(pool_threads) pool_kernel(FewPlaces places, Body body) {
  const Place<int> at = places[blockIdx.x * blockDim.x + threadIdx.x];
  if (!at.there) return;
  typename Body::Window window;
  body.load(at, window);
  body.store(at, window);
}

template <class Body>
void pool(std::string_view op, const FewPlaces& places, const Body& body) {
  launch(op, pool_kernel<Body>, places.blocks(), places.threads(), 0, places, body);
}

// The pack at `from`, or `none` unless it is there. Half words are taken out of words: left to
// itself, the compiler would put together again what a load had left as it was.
template <int n, class T>
__device__ Pack<T, n> load_pack(const T* from, bool there, T none, bool passing) {
  constexpr int bits = 8 * sizeof(T);
  constexpr int each = n * sizeof(T) % 4 == 0 && sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  using Part = Word<sizeof(T)>;
  using Unit = Word<each * sizeof(T)>;
  Pack<Unit, n / each> units{};
#pragma unroll
  for (int j = 0; j < n; ++j)
    units.v[j / each] |= Unit{__builtin_bit_cast(Part, none)} << bits * (j % each);
  if (there) units = load(reinterpret_cast<const Pack<Unit, n / each>*>(from), passing);
  Pack<T, n> pack;
#pragma unroll
  for (int j = 0; j < n; ++j)
    pack.v[j] = __builtin_bit_cast(T, static_cast<Part>(units.v[j / each] >> bits * (j % each)));
  return pack;
}

// n elements of a line of `length` and some more around them; `none` where there are none. They lie
// from `at` on, at place `first` of the line. Packed lines are made of whole packs of n.
template <bool packed, int before, int n, int after, class T>
__device__ void load_line(const T* at, int first, int length, T none, T (&to)[before + n + after],
                          bool passing) {
  const auto one = [&](int j) { return first + j >= 0 && first + j < length ? at[j] : none; };
#pragma unroll
  for (int j = 0; j < before; ++j) to[j] = one(j - before);
  if constexpr (packed) {
    const Pack<T, n> pack = load_pack<n>(at, first < length, none, passing);
#pragma unroll
    for (int j = 0; j < n; ++j) to[before + j] = pack.v[j];
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j) to[before + j] = one(j);
  }
#pragma unroll
  for (int j = 0; j < after; ++j) to[before + n + j] = one(n + j);
}

// The reverse, of what lies inside the line: packs do.
template <bool packed, int n, class T>
__device__ void store_line(T* at, int first, int length, const Pack<T, n>& from) {
  if constexpr (packed) {
    store(reinterpret_cast<Pack<T, n>*>(at), from);
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (first + j < length) at[j] = from.v[j];
  }
}

template <class B>
__device__ void load_seen(const Planes& s, const Place<int>& at, const typename B::T* x,
                          typename B::T none, bool passing, Seen<B>& in) {
  using Height = typename B::Height;
  using Width = typename B::Width;
  const int h = at.row * B::height - Height::padding, w = at.column * B::width;
  const auto* corner = x + std::int64_t{at.plane} * (s.h * s.w) + (h * s.w + w);
#pragma unroll
  for (int r = 0; r < Height::kernel; ++r) {
    const int length = h + r >= 0 && h + r < s.h ? s.w : 0;
    load_line<B::packed, Width::before, B::width, Width::after>(corner + r * s.w, w, length, none,
                                                                in[r], passing);
  }
}

template <class B, class V>
__device__ void load_seers(const Planes& s, const Place<int>& at, const V* from, V none,
                           Seers<B, V>& in) {
  using Height = typename B::Height;
  using Width = typename B::Width;
  const int p = at.row - Height::earlier, q = at.column * B::columns;
  from += std::int64_t{at.plane} * (s.p * s.q) + (p * s.q + q);
#pragma unroll
  for (int i = 0; i < B::down; ++i, from += s.q) {
    const int length = p + i >= 0 && p + i < s.p ? s.q : 0;
    load_line<B::packed, Width::earlier, B::columns, Width::later>(from, q, length, none, in[i],
                                                                   false);
  }
}

// f(i, j, place) for each window of Seers that sees input (r, c) of the block, at that place.
template <class B, class F>
__device__ void each_seer(int r, int c, const F& f) {
  using Height = typename B::Height;
  using Width = typename B::Width;
#pragma unroll
  for (int i = 0; i < B::down; ++i)
#pragma unroll
    for (int j = 0; j < B::across; ++j) {
      const int row = i - Height::earlier, column = j - Width::earlier;
      if (Height::sees(row, r) && Width::sees(column, c))
        f(i, j, Height::place(r, row) * Width::kernel + Width::place(c, column));
    }
}

template <class B, class V>
__device__ void store_outputs(const Planes& s, const Place<int>& at,
                              const Pack<V, B::columns>& from, V* y) {
  const int q = at.column * B::columns;
  store_line<B::packed>(y + std::int64_t{at.plane} * (s.p * s.q) + (at.row * s.q + q), q, s.q,
                        from);
}

// of(r, c): what input (r, c) of the block becomes.
template <class B, class F>
__device__ void store_inputs(const Planes& s, const Place<int>& at, const F& of,
                             typename B::T* dx) {
  const int h = at.row * B::height, w = at.column * B::width;
  dx += std::int64_t{at.plane} * (s.h * s.w) + (h * s.w + w);
#pragma unroll
  for (int r = 0; r < B::height; ++r, dx += s.w) {
    if (h + r >= s.h) break;
    Pack<typename B::T, B::width> out;
#pragma unroll
    for (int c = 0; c < B::width; ++c) out.v[c] = of(r, c);
    store_line<B::packed>(dx, w, s.w, out);
  }
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

// f(Block{}) if the windows are those of the sides: packed, if the rows of the image and of the
// output are made of whole packs.
template <class Height, class Width, class T, class F>
bool visit_block(const PoolSize& s, const F& f) {
  using Packed = Block<true, Height, Width, T>;
  if (!fits<Height, Width>(s)) return false;
  if (s.w % Packed::width == 0 && s.q % Packed::columns == 0)
    f(Packed{});
  else
    f(Block<false, Height, Width, T>{});
  return true;
}

// The same for the windows that have kernels of their own, of images and of lines.
template <class T, class F>
bool visit_squares(const PoolSize& s, const F& f) {
  const auto visit = [&]<class S>(S) { return visit_block<S, S, T>(s, f); };
  return visit(Side<2, 2, 0>{}) || visit(Side<3, 2, 1>{}) || visit(Side<3, 2, 0>{}) ||
         visit(Side<3, 1, 1>{});
}
template <class T, class F>
bool visit_lines(const PoolSize& s, const F& f) {
  const auto visit = [&]<class S>(S) { return visit_block<Side<1, 1, 0>, S, T>(s, f); };
  return visit(Side<2, 2, 0>{}) || visit(Side<3, 2, 1>{}) || visit(Side<3, 1, 1>{});
}

}  // namespace ebb::gpu
