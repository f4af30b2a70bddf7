#include "ebb/ops/pooling/avg_pool2d.h"
#include "ebb/ops/pooling/window.cuh"

namespace ebb {
namespace {

using gpu::AnyPlaces;
using gpu::Block;
using gpu::Compute;
using gpu::Extents;
using gpu::narrow;
using gpu::Pack;
using gpu::Place;
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

// The one divisor of all windows as a factor, where that is exact; else 0.
double factor_of(const PoolSize& s, const Divisor& d) {
  const auto full = [](std::int64_t windows, std::int64_t kernel, std::int64_t stride,
                       std::int64_t padding, std::int64_t extent, bool count_padding) {
    const std::int64_t end = (windows - 1) * stride + kernel - padding;
    return count_padding ? end <= extent + padding : padding == 0 && end <= extent;
  };
  const bool one = full(s.p, s.kernel_h, s.stride_h, s.padding_h, s.h, d.count_padding) &&
                   full(s.q, s.kernel_w, s.stride_w, s.padding_w, s.w, d.count_padding);
  const std::int64_t divisor = d.fixed ? d.fixed : one ? s.kernel_h * s.kernel_w : 0;
  return divisor > 0 && (divisor & (divisor - 1)) == 0 ? 1 / static_cast<double>(divisor) : 0;
}

// What a window's sum is made its mean by: `factor`, if there is one.
template <bool factor, class T>
struct Mean {
  Extents<int> s;
  Divisor d;
  T by;

  Mean(const PoolSize& size, const Divisor& divisor)
      : s(size), d(divisor), by(static_cast<T>(factor_of(size, divisor))) {}
  // Of window (p, q).
  __device__ T operator()(T sum, int p, int q) const {
    if constexpr (factor) return sum * by;
    return sum / divisor_of<T>(d, rows_of(s, d, p), columns_of(s, d, q));
  }
};

// Any windows: one output a thread.
template <class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool(AnyPlaces places, Extents<Index> s, Divisor d, const T* x, T* y) {
  gpu::at_place<Index>(places, [&](std::int64_t plane, Index p, Index q) {
    const auto rows = rows_of(s, d, p);
    const auto columns = columns_of(s, d, q);
    Compute<T> sum = 0;
    for (Index h = rows.first; h < rows.last; ++h) {
      Compute<T> line = 0;  // windows may be large: rows are summed on their own
      for (Index w = columns.first; w < columns.last; ++w)
        line += widen(x[(plane * s.h + h) * s.w + w]);
      sum += line;
    }
    const bool some = rows.first < rows.last && columns.first < columns.last;
    y[(plane * s.p + p) * s.q + q] =
        narrow<T>(some ? sum / divisor_of<Compute<T>>(d, rows, columns) : 0);
  });
}

// Known windows: a block of outputs a thread.
template <bool packed, class Height, class Width, class M, class T>
struct AvgPool {
  using B = Block<Height, Width, T>;
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
        Compute<T> line = 0;
#pragma unroll
        for (int c = 0; c < Width::kernel; ++c) line += widen(in[r][j * Width::stride + c]);
        sum += line;
      }
      out.v[j] = narrow<T>(mean(sum, at.row, q + j));
    }
    gpu::store_line<packed>(y + std::int64_t{at.plane} * s.output + (at.row * s.q + q), q, s.q,
                            out);
  }
};

// Each input gathers its share from the windows that see it.
template <class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_gather(AnyPlaces places, Extents<Index> s, Divisor d, const T* dy, T* dx) {
  gpu::at_place<Index>(places, [&](std::int64_t plane, Index h, Index w) {
    const gpu::Seen<Index> down(h, s.kernel_h, s.stride_h, s.padding_h, 1, s.p);
    const gpu::Seen<Index> across(w, s.kernel_w, s.stride_w, s.padding_w, 1, s.q);
    Compute<T> sum = 0;
    for (Index p = down.first; p <= down.last; ++p) {
      const auto rows = rows_of(s, d, p);
      for (Index q = across.first; q <= across.last; ++q)
        sum += widen(dy[(plane * s.p + p) * s.q + q]) /
               divisor_of<Compute<T>>(d, rows, columns_of(s, d, q));
    }
    dx[(plane * s.h + h) * s.w + w] = narrow<T>(sum);
  });
}

// The same for known windows: a block of inputs a thread, and the shares of all windows that see
// any of them.
template <bool packed, class Height, class Width, class M, class T>
struct AvgPoolGather {
  using B = Block<Height, Width, T>;
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
    Compute<T> share[down][across];
#pragma unroll
    for (int i = 0; i < down; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j) {
        const int row = at.row - Height::earlier + i;
        const int column = at.column * B::columns - Width::earlier + j;
        const bool there = row < s.p && column < s.q;
        share[i][j] = there ? mean(widen(in[i][j]), row, column) : 0;
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
        out.v[c] = narrow<T>(sum);
      }
      gpu::store_line<packed>(to, w, s.w, out);
    }
  }
};

template <class F>
void visit_types(const PoolSize& s, const Tensor& x, F&& f) {
  visit<float, double, bf16>(x.dtype(), "avg_pool2d", [&](auto value) {
    if (gpu::is_small(s))
      f(value, int{});
    else
      f(value, std::int64_t{});
  });
}

// f(Mean, packed or not) with the kernel to be taken.
template <class Height, class Width, class T, class F>
void visit_kernels(const PoolSize& s, const Divisor& d, const T* image, const T* output, F&& f) {
  using C = Compute<T>;
  const bool packed = gpu::in_packs<Height, Width>(s, image, output);
  if (packed && factor_of(s, d) != 0)
    f(Mean<true, C>(s, d), std::true_type());
  else if (packed)
    f(Mean<false, C>(s, d), std::true_type());
  else
    f(Mean<false, C>(s, d), std::false_type());
}

template <class Height, class Width, class T>
void forward(const PoolSize& s, const Divisor& d, const T* x, T* y) {
  constexpr std::int64_t large = 32 << 20;  // bytes
  const bool apart = Height::kernel <= Height::stride && Width::kernel <= Width::stride;
  const bool passing = apart && s.planes * s.h * s.w * std::int64_t{sizeof(T)} >= large;
  visit_kernels<Height, Width>(s, d, x, y, [&](auto mean, auto packed) {
    gpu::pool("avg_pool2d", Block<Height, Width, T>::outputs(s),
              AvgPool<packed, Height, Width, decltype(mean), T>{mean, passing, x, y});
  });
}

template <class Height, class Width, class T>
void backward(const PoolSize& s, const Divisor& d, const T* dy, T* dx) {
  visit_kernels<Height, Width>(s, d, dx, dy, [&](auto mean, auto packed) {
    gpu::pool("avg_pool2d", Block<Height, Width, T>::inputs(s),
              AvgPoolGather<packed, Height, Width, decltype(mean), T>{mean, dy, dx});
  });
}

}  // namespace

void gpu::avg_pool2d(const PoolSize& s, const Divisor& d, const Tensor& x, Tensor& y) {
  visit_types(s, x, [&](auto value, auto count) {
    using T = decltype(value);
    using Index = decltype(count);
    if (visit_squares(s, [&](auto height, auto width) {
          forward<decltype(height), decltype(width)>(s, d, x.data<T>(), y.data<T>());
        }))
      return;
    const AnyPlaces outputs(s.planes, s.p, s.q);
    launch("avg_pool2d", avg_pool<T, Index>, outputs.blocks(), pool_threads, 0, outputs,
           Extents<Index>(s), d, x.data<T>(), y.data<T>());
  });
}

void gpu::avg_pool2d_backward(const PoolSize& s, const Divisor& d, const Tensor& dy, Tensor& dx) {
  visit_types(s, dy, [&](auto value, auto count) {
    using T = decltype(value);
    using Index = decltype(count);
    if (visit_squares(s, [&](auto height, auto width) {
          backward<decltype(height), decltype(width)>(s, d, dy.data<T>(), dx.data<T>());
        }))
      return;
    const AnyPlaces inputs(s.planes, s.h, s.w);
    launch("avg_pool2d", avg_pool_gather<T, Index>, inputs.blocks(), pool_threads, 0, inputs,
           Extents<Index>(s), d, dy.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
