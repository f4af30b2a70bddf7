#include "ebb/ops/pooling/max_pool2d.h"
#include "ebb/ops/pooling/window.cuh"

namespace ebb {
namespace {

using gpu::adjacent_outputs;
using gpu::Compute;
using gpu::is_small;
using gpu::narrow;
using gpu::Pack;
using gpu::pool_threads;
using gpu::widen;

// The maximum so far and its place in the window; the first value seen always counts.
template <class T>
struct Best {
  T value = -INFINITY;
  std::int64_t place = -1;
  __device__ void see(T v, std::int64_t at) {
    if (v > value || v != v || place < 0) {
      value = v;
      place = at;
    }
  }
};

template <class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads) max_pool(PoolSize s, const T* x, I* index, T* y) {
  gpu::for_places<Index>(
      s.planes, s.p, s.q, [&](std::int64_t plane, std::int64_t p, std::int64_t q, std::int64_t i) {
        const std::int64_t top = p * s.stride_h - s.padding_h;
        const std::int64_t left = q * s.stride_w - s.padding_w;
        const std::int64_t r0 = top < 0 ? (s.dilation_h - 1 - top) / s.dilation_h : 0;
        const std::int64_t c0 = left < 0 ? (s.dilation_w - 1 - left) / s.dilation_w : 0;
        Best<Compute<T>> best;
        for (std::int64_t r = r0; r < s.kernel_h; ++r) {
          const std::int64_t h = top + r * s.dilation_h;
          if (h >= s.h) break;
          const T* row = x + (plane * s.h + h) * s.w;
          for (std::int64_t c = c0; c < s.kernel_w; ++c) {
            const std::int64_t w = left + c * s.dilation_w;
            if (w >= s.w) break;
            best.see(widen(row[w]), r * s.kernel_w + c);
          }
        }
        y[i] = narrow<T>(best.value);
        if (index) index[i] = static_cast<I>(best.place);
      });
}

// Windows of `kernel`² at stride 2 over rows twice as long as the output's: 2 × 2 without padding,
// 3 × 3 with a padding of 1. A thread makes `outputs` adjacent ones from one vector of each row
// (and, for 3 × 3, the element before it).
template <class T, class I, class Index, int kernel, int outputs>
__global__ void __launch_bounds__(pool_threads)
    max_pool_by_two(PoolSize s, const T* x, I* index, T* y) {
  constexpr int padding = kernel - 2;
  gpu::for_places<Index>(
      s.planes, s.p, s.q / outputs,
      [&](std::int64_t plane, std::int64_t p, std::int64_t group, std::int64_t i) {
        Best<Compute<T>> best[outputs];
#pragma unroll
        for (int r = 0; r < kernel; ++r) {
          const std::int64_t h = 2 * p - padding + r;
          if (h < 0 || h >= s.h) continue;
          const T* row = x + (plane * s.h + h) * s.w + group * 2 * outputs;
          const auto in = *reinterpret_cast<const Pack<T, 2 * outputs>*>(row);
          if (padding == 1 && group > 0) best[0].see(widen(row[-1]), r * kernel);
#pragma unroll
          for (int o = 0; o < outputs; ++o)
#pragma unroll
            for (int c = 0; c < kernel; ++c) {
              const int at = 2 * o - padding + c;
              if (at >= 0) best[o].see(widen(in.v[at]), r * kernel + c);
            }
        }
        Pack<T, outputs> out;
        Pack<I, outputs> places;
#pragma unroll
        for (int o = 0; o < outputs; ++o) {
          out.v[o] = narrow<T>(best[o].value);
          places.v[o] = static_cast<I>(best[o].place);
        }
        reinterpret_cast<Pack<T, outputs>*>(y)[i] = out;
        if (index) reinterpret_cast<Pack<I, outputs>*>(index)[i] = places;
      });
}

// Each input asks the windows that see it whether it was their maximum.
template <class T, class I, class Index>
__global__ void __launch_bounds__(pool_threads)
    max_pool_gather(PoolSize s, const I* index, const T* dy, T* dx) {
  gpu::for_places<Index>(
      s.planes, s.h, s.w, [&](std::int64_t plane, std::int64_t h, std::int64_t w, std::int64_t i) {
        const gpu::Seen rows(h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.p);
        const gpu::Seen columns(w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.q);
        Compute<T> sum = 0;
        for (std::int64_t p = rows.first; p <= rows.last; ++p) {
          const std::int64_t down = h + s.padding_h - p * s.stride_h;
          if (down % s.dilation_h != 0) continue;
          for (std::int64_t q = columns.first; q <= columns.last; ++q) {
            const std::int64_t across = w + s.padding_w - q * s.stride_w;
            if (across % s.dilation_w != 0) continue;
            const std::int64_t place = down / s.dilation_h * s.kernel_w + across / s.dilation_w;
            const std::int64_t at = (plane * s.p + p) * s.q + q;
            if (index[at] == static_cast<I>(place)) sum += widen(dy[at]);
          }
        }
        dx[i] = narrow<T>(sum);
      });
}

// 2 × 2 windows that do not overlap: a thread writes whole windows. An odd last row of the image
// belongs to a window of its own in ceil_mode, and to none otherwise: its gradient is 0.
template <class T, class I, class Index, int outputs>
__global__ void __launch_bounds__(pool_threads)
    max_pool_spread(PoolSize s, const I* index, const T* dy, T* dx) {
  gpu::for_places<Index>(
      s.planes, (s.h + 1) / 2, s.q / outputs,
      [&](std::int64_t plane, std::int64_t p, std::int64_t group, std::int64_t) {
        Pack<T, outputs> in{};
        Pack<I, outputs> places{};
        if (p < s.p) {
          const std::int64_t at = (plane * s.p + p) * (s.q / outputs) + group;
          in = reinterpret_cast<const Pack<T, outputs>*>(dy)[at];
          places = reinterpret_cast<const Pack<I, outputs>*>(index)[at];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (2 * p + r >= s.h) break;
          Pack<T, 2 * outputs> out;
#pragma unroll
          for (int c = 0; c < 2 * outputs; ++c)
            out.v[c] = places.v[c / 2] == static_cast<I>(2 * r + c % 2) ? in.v[c / 2] : T{};
          T* row = dx + (plane * s.h + 2 * p + r) * s.w + group * 2 * outputs;
          *reinterpret_cast<Pack<T, 2 * outputs>*>(row) = out;
        }
      });
}

// f(T{}, I{}, Index{}) with the types of values, places and element counts.
template <class F>
void visit_types(const PoolSize& s, const Tensor& x, const Tensor& index, F&& f) {
  visit<float, double, bf16>(x.dtype(), "max_pool2d", [&](auto value) {
    const auto with_index = [&](auto place) {
      if (is_small(s))
        f(value, place, std::uint32_t{});
      else
        f(value, place, std::int64_t{});
    };
    if (index.defined() && index.dtype() == Dtype::i32)
      with_index(std::int32_t{});
    else
      with_index(std::uint8_t{});
  });
}

template <class T, class I, class Index, int kernel>
void launch_by_two(const PoolSize& s, int outputs, const T* x, I* index, T* y) {
  constexpr int most = gpu::pack_size<T> / 2;
  const auto f = outputs == most ? max_pool_by_two<T, I, Index, kernel, most>
                                 : max_pool_by_two<T, I, Index, kernel, 1>;
  gpu::launch("max_pool2d", f, gpu::pool_blocks(s.planes * s.p * s.q / outputs), pool_threads, 0, s,
              x, index, y);
}

}  // namespace

void gpu::max_pool2d(const PoolSize& s, const Tensor& x, Tensor& index, Tensor& y) {
  visit_types(s, x, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    using Index = decltype(count);
    I* places = index.defined() ? index.data<I>() : nullptr;
    const int outputs = adjacent_outputs<T>(s, x.raw(), y.raw());
    const bool pairs = s.simple(2, 2) && s.padding_h == 0 && s.padding_w == 0;
    const bool triples = s.simple(3, 2) && s.padding_h == 1 && s.padding_w == 1;
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      if (outputs && pairs)
        return launch_by_two<T, I, Index, 2>(s, outputs, x.data<T>(), places, y.data<T>());
      if (outputs && triples)
        return launch_by_two<T, I, Index, 3>(s, outputs, x.data<T>(), places, y.data<T>());
    }
    launch("max_pool2d", max_pool<T, I, Index>, pool_blocks(y.numel()), pool_threads, 0, s,
           x.data<T>(), places, y.data<T>());
  });
}

void gpu::max_pool2d_backward(const PoolSize& s, const Tensor& index, const Tensor& dy,
                              Tensor& dx) {
  visit_types(s, dy, index, [&](auto value, auto place, auto count) {
    using T = decltype(value);
    using I = decltype(place);
    using Index = decltype(count);
    const int outputs = adjacent_outputs<T>(s, dx.raw(), dy.raw());
    if constexpr (std::is_same_v<I, std::uint8_t>) {
      if (outputs && s.simple(2, 2) && s.padding_h == 0 && s.padding_w == 0) {
        constexpr int most = pack_size<T> / 2;
        const auto f =
            outputs == most ? max_pool_spread<T, I, Index, most> : max_pool_spread<T, I, Index, 1>;
        const std::int64_t items = s.planes * ((s.h + 1) / 2) * (s.q / outputs);
        return launch("max_pool2d", f, pool_blocks(items), pool_threads, 0, s, index.data<I>(),
                      dy.data<T>(), dx.data<T>());
      }
    }
    launch("max_pool2d", max_pool_gather<T, I, Index>, pool_blocks(dx.numel()), pool_threads, 0, s,
           index.data<I>(), dy.data<T>(), dx.data<T>());
  });
}

}  // namespace ebb
