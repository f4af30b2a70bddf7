// Windows of any extent, stride and dilation. Forward, a thread has all elements of a small square;
// other windows are shared by a group of threads: one, 8, 32 or a block. Backward, a thread asks
// all windows that see an input, or a few inputs side by side.
#pragma once
#include "ebb/ops/packs.cuh"
#include "ebb/ops/pooling/places.cuh"

namespace ebb::gpu {

// [first, last) of the taps of a window along one side, or of the windows.
template <class Index>
struct Taps {
  Index first, last;
};

// One side of an image and its windows, divided by as unsigned words.
template <class Index>
struct AnySide {
  using Divider = WordDivider<std::make_unsigned_t<Index>>;
  Index extent, windows, kernel, padding, stride, dilation;
  Divider by_stride, by_dilation;

  AnySide(std::int64_t extent, std::int64_t windows, std::int64_t kernel, std::int64_t stride,
          std::int64_t padding, std::int64_t dilation)
      : extent(static_cast<Index>(extent)),
        windows(static_cast<Index>(windows)),
        kernel(static_cast<Index>(kernel)),
        padding(static_cast<Index>(padding)),
        stride(static_cast<Index>(stride)),
        dilation(static_cast<Index>(dilation)),
        by_stride(stride),
        by_dilation(dilation) {}

  __device__ Index begin(Index window) const { return window * stride - padding; }
  __device__ Taps<Index> taps(Index begin) const {
    const Index rounding = dilation - 1;
    const auto up = [&](Index n) { return static_cast<Index>(by_dilation.quotient(n + rounding)); };
    return {begin < 0 ? up(-begin) : 0, min(kernel, up(extent - begin))};
  }

  // The windows that see any of n places from x on.
  __device__ Taps<Index> seers(Index x, Index n) const {
    const Index reach = x + padding - (kernel - 1) * dilation;
    const auto last = static_cast<Index>(by_stride.quotient(x + n - 1 + padding));
    return {reach > 0 ? static_cast<Index>(by_stride.quotient(reach + stride - 1)) : 0,
            min(last + 1, windows)};
  }
  // f(window, tap) for the windows that see place x, at which of their taps: at most one, where
  // they are `apart`.
  template <bool apart, class F>
  __device__ void each(Index x, const F& f) const {
    if constexpr (apart) {
      const auto i = static_cast<Index>(by_stride.quotient(x + padding));
      const Index tap = x + padding - i * stride;
      if (tap < kernel && i < windows) f(i, tap);
    } else {
      const auto range = seers(x, 1);
      for (Index i = range.first; i < range.last; ++i) {
        const Index distance = x + padding - i * stride;
        const auto tap = static_cast<Index>(by_dilation.quotient(distance));
        if (tap * dilation == distance) f(i, tap);
      }
    }
  }
};

template <class Index>
struct AnySides {
  AnySide<Index> down, across;
  Index image, output;  // places of a plane

  explicit AnySides(const PoolSize& s)
      : down(s.h, s.p, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h),
        across(s.w, s.q, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w),
        image(static_cast<Index>(s.h * s.w)),
        output(static_cast<Index>(s.p * s.q)) {}

  // Of tap (r, c) in a plane, and of an output.
  __device__ Index place(Index top, Index left, Index r, Index c) const {
    return (top + r * down.dilation) * across.extent + left + c * across.dilation;
  }
  __device__ std::int64_t place(const Place<Index>& at) const {
    return std::int64_t{at.plane} * output + (at.row * across.windows + at.column);
  }
};

// Of a window of kernel² elements from (top, left) of a plane on, `none` beyond the image.
template <int kernel, class T, class Index>
__device__ void load_window(const AnySides<Index>& s, const T* plane, Index top, Index left, T none,
                            T (&in)[kernel][kernel]) {
  const T* const corner = plane + (top * s.across.extent + left);
#pragma unroll
  for (int r = 0; r < kernel; ++r)
#pragma unroll
    for (int c = 0; c < kernel; ++c) {
      const Index h = r * s.down.dilation, w = c * s.across.dilation;
      const bool there =
          top + h >= 0 && top + h < s.down.extent && left + w >= 0 && left + w < s.across.extent;
      in[r][c] = there ? corner[h * s.across.extent + w] : none;
    }
}

// What a thread of a group has of the window at (top, left): every so many of its rows and columns,
// side by side as far as there are columns.
template <int group, class Index>
struct Share {
  Index rows, columns;     // how many
  Index first, first_tap;  // the first one's place in the plane, and in the window
  Index right, right_tap;  // steps to the next one of a row,
  Index down, down_tap;    // and of a column

  __device__ Share(const AnySides<Index>& s, Index top, Index left) {
    constexpr int log_group = std::bit_width(unsigned{group}) - 1;
    const auto inside_h = s.down.taps(top), inside_w = s.across.taps(left);
    const Index width = inside_w.last - inside_w.first;
    int log = 0;  // of how many threads are side by side
    while (log < log_group && (Index{1} << log) < width) ++log;
    const int lane = threadIdx.x % group;
    const Index across = Index{1} << log, lines = Index{group} >> log;
    const Index r = inside_h.first + (lane >> log), c = inside_w.first + (lane & (across - 1));
    columns = (inside_w.last - c + across - 1) >> log;
    rows = columns > 0 ? (inside_h.last - r + lines - 1) >> (log_group - log) : 0;
    first = s.place(top, left, r, c);
    first_tap = r * s.across.kernel + c;
    right = across * s.across.dilation;
    right_tap = across;
    down = lines * s.down.dilation * s.across.extent;
    down_tap = lines * s.across.kernel;
  }
  // f(place, tap) in scan order, and end() after each row. A thread on its own has lines; those of
  // a group have few columns, so that loads of several rows should be under way.
  template <class F, class End>
  __device__ void each(const F& f, const End& end) const {
    if constexpr (group == 1) {
      for (Index r = 0; r < rows; ++r) {
#pragma unroll 8
        for (Index c = 0; c < columns; ++c)
          f(first + r * down + c * right, first_tap + r * down_tap + c);
        end();
      }
      return;
    }
    const Index next = down - (columns - 1) * right,
                next_tap = down_tap - (columns - 1) * right_tap;
    Index place = first, tap = first_tap, column = 1;
#pragma unroll 8
    for (Index i = 0; i < rows * columns; ++i) {
      f(place, tap);
      const bool along = column < columns;
      if (!along) end();
      place += along ? right : next;
      tap += along ? right_tap : next_tap;
      column = along ? column + 1 : 1;
    }
  }
};

// The place of the group that the thread is of.
template <int group, class Word>
__device__ auto place_of_group(const Places<Word>& places) {
  return places[blockIdx.x * Word{blockDim.x / group} + threadIdx.x / group];
}

// Over a group's threads; every one gets the result.
template <int group, class T, class Op>
__device__ T group_reduce(T x, Op op) {
  if constexpr (group == 1)
    return x;
  else if constexpr (group <= warp_size)
    return warp_reduce<group>(x, op);
  else
    return block_reduce<group>(x, op);
}

// f.operator()<kernel>() with the extent of squares of which a thread can have all elements.
template <int kernel = 1, class F>
bool visit_kernel(const PoolSize& s, const F& f) {
  constexpr int most = 5;
  if (s.kernel_h == kernel && s.kernel_w == kernel) return f.template operator()<kernel>(), true;
  if constexpr (kernel < most) return visit_kernel<kernel + 1>(s, f);
  return false;
}

// f.operator()<group>() with how many threads should share a window. Those of windows that overlap
// would read the same, so they should be no more than fill the GPU.
template <class F>
void visit_groups(const PoolSize& s, const F& f) {
  constexpr std::int64_t enough = 1 << 16;  // threads
  const std::int64_t elements = std::min(s.kernel_h, s.h) * std::min(s.kernel_w, s.w);
  const std::int64_t windows = std::max<std::int64_t>(1, s.planes * s.p * s.q);
  const bool overlap = s.p * s.q * elements > 2 * s.h * s.w;
  const std::int64_t most = overlap ? divide_up(enough, windows) : pool_threads;
  if (elements < (overlap ? 256 : 32) || most == 1) return f.template operator()<1>();
  if (elements < 256 || most <= 8) return f.template operator()<8>();
  if (elements < 4096 || most <= 32) return f.template operator()<32>();
  f.template operator()<pool_threads>();
}

// dx of `width` inputs side by side: finish(Σ of(i, p, q, r, c)) over the windows that see them,
// which are output i of row p and column q, at their tap (r, c).
template <int width, bool apart, class T, class Index, class Of, class Finish>
__device__ void gather(const Place<Index>& at, const AnySides<Index>& s, T* dx, const Of& of,
                       const Finish& finish) {
  const Index w = at.column * width;
  Compute<T> sum[width] = {};
  s.down.template each<apart>(at.row, [&](Index p, Index r) {
    const std::int64_t line = s.place({true, at.plane, p, 0});
#pragma unroll
    for (int j = 0; j < width; ++j)
      s.across.template each<apart>(w + j,
                                    [&](Index q, Index c) { sum[j] += of(line + q, p, q, r, c); });
  });
#pragma unroll
  for (int j = 0; j < width; ++j) sum[j] = finish(sum[j]);
  T* const to = dx + std::int64_t{at.plane} * s.image + (at.row * s.across.extent + w);
  store(reinterpret_cast<Pack<T, width>*>(to), narrow<T, width>(sum));
}

// The same of windows that overlap, without dilation: add(sum, i, p, q, r, c) once for each that
// sees any of the inputs, with the tap of the first input, which need not be one of its taps.
template <int width, class T, class Index, class Add, class Finish>
__device__ void gather_overlap(const Place<Index>& at, const AnySides<Index>& s, T* dx,
                               const Add& add, const Finish& finish) {
  constexpr Index some = 32;  // rows; sums of thousands would lose digits
  const Index w = at.column * width;
  double sum[width] = {};
  const auto rows = s.down.seers(at.row, 1), columns = s.across.seers(w, width);
  for (Index q = columns.first; q < columns.last; ++q)
    for (Index first = rows.first; first < rows.last; first += some) {
      Compute<T> of_some[width] = {};
      for (Index p = first; p < min(first + some, rows.last); ++p)
        add(of_some, s.place({true, at.plane, p, q}), p, q, at.row - s.down.begin(p),
            w - s.across.begin(q));
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += static_cast<double>(of_some[j]);
    }
  T* const to = dx + std::int64_t{at.plane} * s.image + (at.row * s.across.extent + w);
#pragma unroll
  for (int j = 0; j < width; ++j)
    if (w + j < s.across.extent) to[j] = narrow<T>(finish(static_cast<Compute<T>>(sum[j])));
}

enum class Windows { apart, overlap, dilated };

// f.operator()<width, windows>() with how many inputs side by side a thread can have.
template <class T, class F>
void visit_gather(const PoolSize& s, const T* image, const F& f) {
  constexpr int width = 4;
  const bool packed =
      s.w % width == 0 && reinterpret_cast<std::uintptr_t>(image) % sizeof(Pack<T, width>) == 0;
  if (s.dilation_h > 1 || s.dilation_w > 1)
    return packed ? f.template operator()<width, Windows::dilated>()
                  : f.template operator()<1, Windows::dilated>();
  if (s.kernel_h > s.stride_h || s.kernel_w > s.stride_w)
    return f.template operator()<width, Windows::overlap>();
  packed ? f.template operator()<width, Windows::apart>()
         : f.template operator()<1, Windows::apart>();
}

}  // namespace ebb::gpu
