#include "ebb/ops/pooling/avg_pool2d.h"
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

// One side of a window: clipped to the image, and its length with the padding it may count.
template <class Index>
struct Range {
  Index first, last, length;
  __device__ Range(Index at, Index kernel, Index stride, Index padding, Index extent,
                   bool count_padding) {
    const auto smaller = [](Index a, Index b) { return a < b ? a : b; };
    const auto larger = [](Index a, Index b) { return a > b ? a : b; };
    const Index begin = at * stride - padding;
    const Index end = smaller(begin + kernel, extent + padding);
    first = larger(begin, 0);
    last = smaller(end, extent);
    length = count_padding ? end - begin : larger(last - first, 0);
  }
};

template <class T, class Index>
__device__ T divisor_of(const Divisor& d, const Range<Index>& rows, const Range<Index>& columns) {
  return d.fixed ? static_cast<T>(d.fixed)
                 : static_cast<T>(rows.length) * static_cast<T>(columns.length);
}

// The two sides of window (p, q).
template <class Index>
__device__ Range<Index> rows_of(const Extents<Index>& s, const Divisor& d, Index p) {
  return {p, s.kernel_h, s.stride_h, s.padding_h, s.h, d.count_padding};
}
template <class Index>
__device__ Range<Index> columns_of(const Extents<Index>& s, const Divisor& d, Index q) {
  return {q, s.kernel_w, s.stride_w, s.padding_w, s.w, d.count_padding};
}

// The one divisor of all windows; 0 if they differ.
std::int64_t divisor_of_all(const PoolSize& s, const Divisor& d) {
  const auto full = [](std::int64_t windows, std::int64_t kernel, std::int64_t stride,
                       std::int64_t padding, std::int64_t extent, bool count_padding) {
    const std::int64_t end = (windows - 1) * stride + kernel - padding;
    return count_padding ? end <= extent + padding : padding == 0 && end <= extent;
  };
  const bool one = full(s.p, s.kernel_h, s.stride_h, s.padding_h, s.h, d.count_padding) &&
                   full(s.q, s.kernel_w, s.stride_w, s.padding_w, s.w, d.count_padding);
  return d.fixed ? d.fixed : one ? s.kernel_h * s.kernel_w : 0;
}

// x / d, rounded once, by a reciprocal and what it leaves: without the branch of a division.
template <class T>
struct Quotient {
  T d, reciprocal;

  explicit Quotient(std::int64_t divisor)
      : d(static_cast<T>(divisor)), reciprocal(divisor ? 1 / d : 0) {}
  __device__ T operator()(T x) const {
    if constexpr (std::is_same_v<T, double>) return x / d;
    const T y = x * reciprocal;
    const T rest = fma(-y, d, x);
    return rest == rest ? fma(rest, reciprocal, y) : y;  // none of an infinity
  }
};

// What a window's sum is made its mean by; `one` divisor for all windows, or not.
template <bool one_, class T>
struct Mean {
  static constexpr bool one = one_;
  Extents<int> s;
  Divisor d;
  Quotient<T> all;

  Mean(const PoolSize& size, const Divisor& divisor)
      : s(size), d(divisor), all(divisor_of_all(size, divisor)) {}
  // Of window (p, q).
  __device__ T operator()(T sum, int p, int q) const {
    if constexpr (one) return all(sum);
    return sum / divisor_of<T>(d, rows_of(s, d, p), columns_of(s, d, q));
  }
};

// Any windows: one output a thread, of windows of kernel² elements, or any if that is 0.
template <int kernel, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool(PlacesOf<Index> places, Extents<Index> s, Divisor d, const T* x, T* y) {
  gpu::at_place(places, [&](std::int64_t plane, Index p, Index q) {
    const auto rows = rows_of(s, d, p);
    const auto columns = columns_of(s, d, q);
    Compute<T> sum = 0;
    if constexpr (kernel > 0) {
      const Index top = p * s.stride_h - s.padding_h, left = q * s.stride_w - s.padding_w;
      const T* const corner = x + plane * s.image + (top * s.w + left);
      T in[kernel][kernel];
#pragma unroll
      for (int r = 0; r < kernel; ++r)
#pragma unroll
        for (int c = 0; c < kernel; ++c) {
          const bool there = top + r >= rows.first && top + r < rows.last &&
                             left + c >= columns.first && left + c < columns.last;
          in[r][c] = there ? corner[r * s.w + c] : T{};
        }
#pragma unroll
      for (int r = 0; r < kernel; ++r) {
        Compute<T> line = widen(in[r][0]);
#pragma unroll
        for (int c = 1; c < kernel; ++c) line += widen(in[r][c]);
        sum += line;
      }
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

// Windows of many elements that hardly overlap: a group of threads an output.
template <int group, class T>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_wide(gpu::Wide wide, Extents<int> s, Divisor d, const T* x, T* y) {
  const auto at = wide.place<group>();
  const auto rows = rows_of(s, d, at.row);
  const auto columns = columns_of(s, d, at.column);
  const T* const plane = x + std::int64_t{at.plane} * s.image;
  Compute<T> sum = 0;
  if (at.there)
    wide.each<group>(rows.first, rows.last, columns.first, columns.last,
                     [&](int h, int w) { sum += widen(plane[h * s.w + w]); });
  sum = gpu::group_reduce<group>(sum, gpu::Sum{});
  if (at.there && wide.leader<group>())
    y[std::int64_t{at.plane} * s.output + (at.row * s.q + at.column)] =
        narrow<T>(sum / divisor_of<Compute<T>>(d, rows, columns));
}

// Known windows: a block of outputs a thread.
template <bool packed, class Height, class Width, class M, class T>
struct AvgPool {
  using B = Block<packed, Height, Width, T>;
  using Window = T[Height::kernel][Width::before + B::width + Width::after];
  M mean;
  bool passing;
  const T* x;
  T* y;

  __device__ void load(const Place<int>& at, Window& in) const {
    const Extents<int>& s = mean.s;
    const int h = at.row * B::height - Height::padding, w = at.column * B::width;
    const T* corner = x + std::int64_t{at.plane} * s.image + (h * s.w + w);
#pragma unroll
    for (int r = 0; r < Height::kernel; ++r) {
      const int length = h + r >= 0 && h + r < s.h ? s.w : 0;
      gpu::load_line<packed, Width::before, B::width, Width::after>(corner + r * s.w, w, length,
                                                                    T{}, in[r], passing);
    }
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    const Extents<int>& s = mean.s;
    const int q = at.column * B::columns;
    Pack<T, B::columns> out;
#pragma unroll
    for (int j = 0; j < B::columns; ++j) {
      Compute<T> sum = 0;
#pragma unroll
      for (int r = 0; r < Height::kernel; ++r) {
        Compute<T> line = widen(in[r][j * Width::stride]);
#pragma unroll
        for (int c = 1; c < Width::kernel; ++c) line += widen(in[r][j * Width::stride + c]);
        sum += line;
      }
      out.v[j] = narrow<T>(mean(sum, at.row, q + j));
    }
    gpu::store_line<packed>(y + std::int64_t{at.plane} * s.output + (at.row * s.q + q), q, s.q,
                            out);
  }
};

// Each input gathers its share from the windows that see it; a thread has `width` inputs side by
// side. Where all windows have `one` divisor, it is what the sum of dy is divided by.
template <int width, bool apart, bool one, class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_gather(PlacesOf<Index> places, Extents<Index> s, gpu::AnyWindows<Index> windows,
                    Divisor d, Quotient<Compute<T>> all, const T* dy, T* dx) {
  gpu::at_place(places, [&](std::int64_t plane, Index h, Index pack) {
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
          gpu::narrow<T, width>(sum));
  });
}

// The same for known windows: a block of inputs a thread, and the shares of all windows that see
// any of them.
template <bool packed, class Height, class Width, class M, class T>
struct AvgPoolGather {
  using B = Block<packed, Height, Width, T>;
  static constexpr int down = Height::earlier + 1 + Height::later;
  static constexpr int across = Width::earlier + B::columns + Width::later;
  using Window = T[down][across];
  M mean;
  const T* dy;
  T* dx;

  __device__ void load(const Place<int>& at, Window& in) const {
    const Extents<int>& s = mean.s;
    const int p = at.row - Height::earlier, q = at.column * B::columns;
    const T* from = dy + std::int64_t{at.plane} * s.output + (p * s.q + q);
#pragma unroll
    for (int i = 0; i < down; ++i)
      gpu::load_line<packed, Width::earlier, B::columns, Width::later>(
          from + i * s.q, q, p + i >= 0 && p + i < s.p ? s.q : 0, T{}, in[i]);
  }

  __device__ void store(const Place<int>& at, const Window& in) const {
    const Extents<int>& s = mean.s;
    Compute<T> share[down][across];  // of one divisor, before it is divided
#pragma unroll
    for (int i = 0; i < down; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j) {
        const int row = at.row - Height::earlier + i;
        const int column = at.column * B::columns - Width::earlier + j;
        share[i][j] = widen(in[i][j]);
        if constexpr (!M::one) {
          const bool there = row < s.p && column < s.q;
          share[i][j] = there ? mean(share[i][j], row, column) : 0;
        }
      }
    const int h = at.row * B::height, w = at.column * B::width;
    T* to = dx + std::int64_t{at.plane} * s.image + (h * s.w + w);
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
          for (int j = 0; j < across; ++j)
            if (Height::sees(i - Height::earlier, r) && Width::sees(j - Width::earlier, c))
              sum += share[i][j];
        if constexpr (M::one) sum = mean.all(sum);
        out.v[c] = narrow<T>(sum);
      }
      gpu::store_line<packed>(to, w, s.w, out);
    }
  }
};

template <class F>
void visit_types(const PoolSize& s, const Tensor& x, F&& f) {
  visit<float, double, bf16>(x.dtype(), "avg_pool2d", [&](auto value) {
    if (gpu::is_few(s))
      f(value, int{});
    else
      f(value, std::int64_t{});
  });
}

// f(Mean, packed or not) with the kernel to be taken.
template <class Height, class Width, class T, class F>
void visit_kernels(const PoolSize& s, const Divisor& d, const T* image, const T* output, F&& f) {
  const bool packed = gpu::in_packs<Height, Width>(s, image, output);
  const auto with_mean = [&](auto mean) {
    packed ? f(mean, std::true_type()) : f(mean, std::false_type());
  };
  if (divisor_of_all(s, d) != 0)
    with_mean(Mean<true, Compute<T>>(s, d));
  else
    with_mean(Mean<false, Compute<T>>(s, d));
}

template <class Height, class Width, class T>
void forward(const PoolSize& s, const Divisor& d, const T* x, T* y) {
  const bool passing = gpu::is_passing<Height, Width, T>(s);
  visit_kernels<Height, Width>(s, d, x, y, [&](auto mean, auto packed) {
    gpu::pool("avg_pool2d", Block<packed, Height, Width, T>::outputs(s),
              AvgPool<packed, Height, Width, decltype(mean), T>{mean, passing, x, y});
  });
}

template <class Height, class Width, class T>
void backward(const PoolSize& s, const Divisor& d, const T* dy, T* dx) {
  visit_kernels<Height, Width>(s, d, dx, dy, [&](auto mean, auto packed) {
    gpu::pool("avg_pool2d", Block<packed, Height, Width, T>::inputs(s),
              AvgPoolGather<packed, Height, Width, decltype(mean), T>{mean, dy, dx});
  });
}

template <class T, class Index>
void forward_of_any(const PoolSize& s, const Divisor& d, const T* x, T* y) {
  if constexpr (std::is_same_v<Index, int> && sizeof(T) <= 4)
    if (gpu::is_wide(s))
      return gpu::visit_groups(s, [&]<int group>() {
        const gpu::Wide wide(s);
        launch("avg_pool2d", avg_pool_wide<group, T>, wide.blocks(group), pool_threads, 0, wide,
               Extents<int>(s), d, x, y);
      });
  const PlacesOf<Index> outputs(s.planes, s.p, s.q);
  const int threads = gpu::threads_for(s.planes * s.p * s.q);
  gpu::visit_kernel(s, [&]<int kernel>() {
    launch("avg_pool2d", avg_pool<kernel, T, Index>, outputs.blocks(threads), threads, 0, outputs,
           Extents<Index>(s), d, x, y);
  });
}

template <int width, bool apart, bool one, class T, class Index>
void gather(const PoolSize& s, const Divisor& d, const T* dy, T* dx) {
  const PlacesOf<Index> inputs(s.planes, s.h, s.w / width);
  const int threads = gpu::threads_for(s.planes * s.h * s.w / width);
  launch("avg_pool2d", avg_pool_gather<width, apart, one, T, Index>, inputs.blocks(threads),
         threads, 0, inputs, Extents<Index>(s), gpu::AnyWindows<Index>(s), d,
         Quotient<Compute<T>>(divisor_of_all(s, d)), dy, dx);
}

}  // namespace

void gpu::avg_pool2d(const PoolSize& s, const Divisor& d, const Tensor& x, Tensor& y) {
  visit_types(s, x, [&](auto value, auto count) {
    using T = decltype(value);
    const bool known = visit_squares(s, [&](auto height, auto width) {
      forward<decltype(height), decltype(width)>(s, d, x.data<T>(), y.data<T>());
    });
    if (!known) forward_of_any<T, decltype(count)>(s, d, x.data<T>(), y.data<T>());
  });
}

void gpu::avg_pool2d_backward(const PoolSize& s, const Divisor& d, const Tensor& dy, Tensor& dx) {
  visit_types(s, dy, [&](auto value, auto count) {
    using T = decltype(value);
    if (visit_squares(s, [&](auto height, auto width) {
          backward<decltype(height), decltype(width)>(s, d, dy.data<T>(), dx.data<T>());
        }))
      return;
    if (divisor_of_all(s, d) == 0)
      return gather<1, false, false, T, decltype(count)>(s, d, dy.data<T>(), dx.data<T>());
    gpu::visit_gather(s, dx.data<T>(), [&]<int width, bool apart>() {
      gather<width, apart, true, T, decltype(count)>(s, d, dy.data<T>(), dx.data<T>());
    });
  });
}

}  // namespace ebb
