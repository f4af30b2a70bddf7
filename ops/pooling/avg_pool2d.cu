#include "ebb/ops/pooling/avg_pool2d.h"
#include "ebb/ops/pooling/window.cuh"

namespace ebb {
namespace {

using gpu::Compute;
using gpu::is_small;
using gpu::narrow;
using gpu::Pack;
using gpu::pool_threads;
using gpu::widen;

__device__ std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
__device__ std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// One side of a window: clipped to the image, and its length with the padding it may count.
struct Range {
  std::int64_t first, last, length;
  __device__ Range(std::int64_t at, std::int64_t kernel, std::int64_t stride, std::int64_t padding,
                   std::int64_t extent, bool count_padding) {
    const std::int64_t begin = at * stride - padding;
    const std::int64_t end = smaller(begin + kernel, extent + padding);
    first = larger(begin, 0);
    last = smaller(end, extent);
    length = count_padding ? end - begin : larger(last - first, 0);
  }
};

template <class T>
__device__ T divisor_of(const Divisor& d, const Range& rows, const Range& columns) {
  return static_cast<T>(d.fixed ? d.fixed : rows.length * columns.length);
}

template <class T, class Index>
__global__ void __launch_bounds__(pool_threads) avg_pool(PoolSize s, Divisor d, const T* x, T* y) {
  gpu::for_places<Index>(
      s.planes, s.p, s.q, [&](std::int64_t plane, std::int64_t p, std::int64_t q, std::int64_t i) {
        const Range rows(p, s.kernel_h, s.stride_h, s.padding_h, s.h, d.count_padding);
        const Range columns(q, s.kernel_w, s.stride_w, s.padding_w, s.w, d.count_padding);
        Compute<T> sum = 0;
        for (std::int64_t h = rows.first; h < rows.last; ++h) {
          Compute<T> line = 0;  // windows may be large: rows are summed on their own
          for (std::int64_t w = columns.first; w < columns.last; ++w)
            line += widen(x[(plane * s.h + h) * s.w + w]);
          sum += line;
        }
        const bool some = rows.first < rows.last && columns.first < columns.last;
        y[i] = narrow<T>(some ? sum / divisor_of<Compute<T>>(d, rows, columns) : 0);
      });
}

// Each input gathers its share from the windows that see it.
template <class T, class Index>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_gather(PoolSize s, Divisor d, const T* dy, T* dx) {
  gpu::for_places<Index>(
      s.planes, s.h, s.w, [&](std::int64_t plane, std::int64_t h, std::int64_t w, std::int64_t i) {
        const gpu::Seen down(h, s.kernel_h, s.stride_h, s.padding_h, 1, s.p);
        const gpu::Seen across(w, s.kernel_w, s.stride_w, s.padding_w, 1, s.q);
        Compute<T> sum = 0;
        for (std::int64_t p = down.first; p <= down.last; ++p) {
          const Range rows(p, s.kernel_h, s.stride_h, s.padding_h, s.h, d.count_padding);
          for (std::int64_t q = across.first; q <= across.last; ++q) {
            const Range columns(q, s.kernel_w, s.stride_w, s.padding_w, s.w, d.count_padding);
            sum +=
                widen(dy[(plane * s.p + p) * s.q + q]) / divisor_of<Compute<T>>(d, rows, columns);
          }
        }
        dx[i] = narrow<T>(sum);
      });
}

// 2 × 2 windows that fill the image exactly: vectors in, vectors out.
template <class T, class Index, int outputs>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_by_two(PoolSize s, Compute<T> divisor, const T* x, T* y) {
  gpu::for_places<Index>(
      s.planes, s.p, s.q / outputs,
      [&](std::int64_t plane, std::int64_t p, std::int64_t group, std::int64_t i) {
        using Row = Pack<T, 2 * outputs>;
        const T* from = x + (plane * s.h + 2 * p) * s.w + group * 2 * outputs;
        const Row a = *reinterpret_cast<const Row*>(from);
        const Row b = *reinterpret_cast<const Row*>(from + s.w);
        Pack<T, outputs> out;
#pragma unroll
        for (int o = 0; o < outputs; ++o)
          out.v[o] = narrow<T>(((widen(a.v[2 * o]) + widen(a.v[2 * o + 1])) +
                                (widen(b.v[2 * o]) + widen(b.v[2 * o + 1]))) /
                               divisor);
        reinterpret_cast<Pack<T, outputs>*>(y)[i] = out;
      });
}

template <class T, class Index, int outputs>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_spread(PoolSize s, Compute<T> divisor, const T* dy, T* dx) {
  gpu::for_places<Index>(
      s.planes, s.p, s.q / outputs,
      [&](std::int64_t plane, std::int64_t p, std::int64_t group, std::int64_t i) {
        using Row = Pack<T, 2 * outputs>;
        const auto in = reinterpret_cast<const Pack<T, outputs>*>(dy)[i];
        Row out;
#pragma unroll
        for (int o = 0; o < outputs; ++o)
          out.v[2 * o] = out.v[2 * o + 1] = narrow<T>(widen(in.v[o]) / divisor);
        T* to = dx + (plane * s.h + 2 * p) * s.w + group * 2 * outputs;
        *reinterpret_cast<Row*>(to) = out;
        *reinterpret_cast<Row*>(to + s.w) = out;
      });
}

bool is_exact(const PoolSize& s) {
  return s.simple(2, 2) && s.padding_h == 0 && s.padding_w == 0 && s.h == 2 * s.p;
}

template <class F>
void visit_types(const PoolSize& s, const Tensor& x, F&& f) {
  visit<float, double, bf16>(x.dtype(), "avg_pool2d", [&](auto value) {
    if (is_small(s))
      f(value, std::uint32_t{});
    else
      f(value, std::int64_t{});
  });
}

}  // namespace

void gpu::avg_pool2d(const PoolSize& s, const Divisor& d, const Tensor& x, Tensor& y) {
  visit_types(s, x, [&](auto value, auto count) {
    using T = decltype(value);
    using Index = decltype(count);
    constexpr int most = pack_size<T> / 2;
    const int outputs = is_exact(s) ? adjacent_outputs<T>(s, x.raw(), y.raw()) : 0;
    if (outputs == 0)
      return launch("avg_pool2d", avg_pool<T, Index>, pool_blocks(y.numel()), pool_threads, 0, s, d,
                    x.data<T>(), y.data<T>());
    const auto f = outputs == most ? avg_pool_by_two<T, Index, most> : avg_pool_by_two<T, Index, 1>;
    launch("avg_pool2d", f, pool_blocks(y.numel() / outputs), pool_threads, 0, s,
           d.fixed ? d.fixed : 4, x.data<T>(), y.data<T>());
  });
}

void gpu::avg_pool2d_backward(const PoolSize& s, const Divisor& d, const Tensor& dy, Tensor& dx) {
  visit_types(s, dy, [&](auto value, auto count) {
    using T = decltype(value);
    using Index = decltype(count);
    constexpr int most = pack_size<T> / 2;
    const int outputs = is_exact(s) ? adjacent_outputs<T>(s, dx.raw(), dy.raw()) : 0;
    if (outputs == 0)
      return launch("avg_pool2d", avg_pool_gather<T, Index>, pool_blocks(dx.numel()), pool_threads,
                    0, s, d, dy.data<T>(), dx.data<T>());
    const auto f = outputs == most ? avg_pool_spread<T, Index, most> : avg_pool_spread<T, Index, 1>;
    launch("avg_pool2d", f, pool_blocks(dy.numel() / outputs), pool_threads, 0, s,
           d.fixed ? d.fixed : 4, dy.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
