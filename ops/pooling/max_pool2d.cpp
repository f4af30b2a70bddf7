#include "ebb/ops/pooling/max_pool2d.h"

#include <limits>

#include "ebb/ops/map.h"
#include "ebb/ops/pooling/columns.h"

namespace ebb {

Tensor max_pool2d(const Tensor& x, Pair kernel_size, MaxPool2dOptions o) {
  return max_pool(
      "max_pool2d", x,
      {kernel_size, o.stride.value_or(kernel_size), o.padding, o.dilation, o.ceil_mode});
}

Tensor max_pool(const char* op, const Tensor& x, const PoolOptions& options) {
  const PoolSize size = pool_size(op, x, options);
  const std::int64_t places = size.kernel_h * size.kernel_w;
  require(places < (std::int64_t{1} << 31), Kind::limit, op, "window too large", options.kernel,
          "at most 2^31 - 1 places");
  const Shape shape = pool_shape(x, size);
  Tensor y = empty(shape, x.options());
  Tensor index;
  if (grad_enabled() && x.requires_grad())
    index = empty(shape, {places <= 255 ? Dtype::u8 : Dtype::i32, x.device()});
  run<cpu::max_pool2d, gpu::max_pool2d>(x.device(), size, x, index, y);
  return record(op, y, {x}, [size, index, shape = x.shape()](const Tensor& dy) -> Gradients {
    Tensor dx = empty(shape, dy.options());
    run<cpu::max_pool2d_backward, gpu::max_pool2d_backward>(dy.device(), size, index, dy, dx);
    return {dx};
  });
}

namespace {

constexpr std::int64_t worth_a_thread = 1 << 15;

// One output from its window, clipped to the image.
template <class T, class I>
void pool_window(const PoolSize& s, const T* x, std::int64_t p, std::int64_t q, I* index, T* y) {
  const std::int64_t h0 = p * s.stride_h - s.padding_h;
  const std::int64_t w0 = q * s.stride_w - s.padding_w;
  const std::int64_t r0 = h0 < 0 ? (-h0 + s.dilation_h - 1) / s.dilation_h : 0;
  const std::int64_t s0 = w0 < 0 ? (-w0 + s.dilation_w - 1) / s.dilation_w : 0;
  T best = -std::numeric_limits<T>::infinity();
  std::int64_t place = -1;
  for (std::int64_t r = r0; r < s.kernel_h && h0 + r * s.dilation_h < s.h; ++r)
    for (std::int64_t c = s0; c < s.kernel_w && w0 + c * s.dilation_w < s.w; ++c) {
      const T v = x[(h0 + r * s.dilation_h) * s.w + w0 + c * s.dilation_w];
      if (v > best || v != v || place < 0) {
        best = v;
        place = r * s.kernel_w + c;
      }
    }
  *y = best;
  if (index) *index = static_cast<I>(place);
}

// As wide as the values, so that the compiler turns a choice of both into SIMD.
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

// The outputs [q, q + n) of row p, whose windows lie in the image's width and have the rows
// [r0, r1).
template <class T>
void pool_columns(const PoolSize& s, const T* x, std::int64_t p, std::int64_t r0, std::int64_t r1,
                  std::int64_t q, std::int64_t n, Place<T>* place, T* best) {
  const std::int64_t whole = cpu::whole_registers(n);
  for (std::int64_t r = r0; r < r1; ++r) {
    const std::int64_t at =
        (p * s.stride_h - s.padding_h + r * s.dilation_h) * s.w + q * s.stride_w - s.padding_w;
    cpu::RowTaps<T> taps(s, x + at, s.h * s.w - at, n);
    for (std::int64_t c = 0; c < s.kernel_w; ++c) {
      const T* v = taps.at(c);
      const auto here = static_cast<Place<T>>(r * s.kernel_w + c);
      if (r == r0 && c == 0) {
        std::copy_n(v, whole, best);
        std::fill_n(place, whole, here);
        continue;
      }
#pragma omp simd
      for (std::int64_t i = 0; i < whole; ++i) {
        const bool better = (v[i] > best[i]) | (v[i] != v[i]);
        best[i] = better ? v[i] : best[i];
        place[i] = better ? here : place[i];
      }
    }
  }
}

// The same where no one asks for places, two taps at a time where both can be had.
template <class T>
void pool_values(const PoolSize& s, const T* x, std::int64_t p, std::int64_t r0, std::int64_t r1,
                 std::int64_t q, std::int64_t n, T* best) {
  const auto larger = [](auto best, auto v) {
    return select(not_at_most(v, best) & (best == best), v, best);
  };
  const auto largest = [=](auto best, auto v, auto w) { return larger(larger(best, v), w); };
  const std::int64_t whole = cpu::whole_registers(n);
  for (std::int64_t r = r0; r < r1; ++r) {
    const std::int64_t at =
        (p * s.stride_h - s.padding_h + r * s.dilation_h) * s.w + q * s.stride_w - s.padding_w;
    cpu::RowTaps<T> taps(s, x + at, s.h * s.w - at, n);
    std::int64_t c = 0;
    if (r == r0) std::copy_n(taps.at(c++), whole, best);
    for (; c + 2 <= s.kernel_w && taps.side_by_side(c + 1); c += 2)
      cpu::map_row(best, whole, largest, best, taps.at(c), taps.at(c + 1));
    for (; c < s.kernel_w; ++c) cpu::map_row(best, whole, larger, best, taps.at(c));
  }
}

template <class T, class I>
void pool_row(const PoolSize& s, const T* x, std::int64_t p, I* index, T* y) {
  const std::int64_t h0 = p * s.stride_h - s.padding_h;
  const std::int64_t r0 = h0 < 0 ? (-h0 + s.dilation_h - 1) / s.dilation_h : 0;
  const std::int64_t r1 = std::min(s.kernel_h, (s.h - h0 + s.dilation_h - 1) / s.dilation_h);
  cpu::Columns inside(s, 4);
  if (r0 >= r1) inside.end = inside.begin;
  const auto edges = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t q = begin; q < end; ++q)
      pool_window(s, x, p, q, index ? index + q : nullptr, y + q);
  };
  edges(0, inside.begin);
  for (std::int64_t q = inside.begin; q < inside.end; q += cpu::pool_block) {
    const std::int64_t n = std::min(cpu::pool_block, inside.end - q);
    Place<T> place[cpu::pool_block];
    T best[cpu::pool_block];
    if (index) {
      pool_columns(s, x, p, r0, r1, q, n, place, best);
    } else {
      pool_values(s, x, p, r0, r1, q, n, best);
    }
    std::copy_n(best, n, y + q);
    for (std::int64_t i = 0; i < n && index; ++i) index[q + i] = static_cast<I>(place[i]);
  }
  edges(inside.end, s.q);
}

template <class T, class I>
void pool_plane(const PoolSize& s, const T* x, I* index, T* y) {
  for (std::int64_t p = 0; p < s.p; ++p)
    pool_row(s, x, p, index ? index + p * s.q : nullptr, y + p * s.q);
}

// How far from a window's first tap the tap of each place is.
class Offsets {
 public:
  explicit Offsets(const PoolSize& s) : s_(s) {
    for (std::int64_t k = 0; k < std::min<std::int64_t>(256, s.kernel_h * s.kernel_w); ++k)
      near_[k] = of(k);
  }
  std::int64_t operator[](std::uint8_t place) const { return near_[place]; }
  std::int64_t operator[](std::int32_t place) const { return of(place); }

 private:
  std::int64_t of(std::int64_t k) const {
    return k / s_.kernel_w * s_.dilation_h * s_.w + k % s_.kernel_w * s_.dilation_w;
  }
  PoolSize s_;
  std::int64_t near_[256] = {};
};

// The gradient of a plane belongs to one thread, which adds in the order of the outputs.
template <class T, class I>
void scatter_plane(const PoolSize& s, const Offsets& offsets, const I* index, const T* dy, T* dx) {
  constexpr I nowhere = static_cast<I>(-1);
  std::fill_n(dx, s.h * s.w, T(0));
  for (std::int64_t p = 0; p < s.p; ++p) {
    const std::int64_t row = (p * s.stride_h - s.padding_h) * s.w - s.padding_w;
    for (std::int64_t q = 0; q < s.q; ++q) {
      const I place = index[p * s.q + q];
      if (place == nowhere) continue;
      dx[row + q * s.stride_w + offsets[place]] += dy[p * s.q + q];
    }
  }
}

// f(T{}, I{}) with the types of the values and of the index.
template <class F>
void visit_types(const Tensor& x, const Tensor& index, F&& f) {
  visit<float, double>(x.dtype(), "max_pool2d", [&](auto value) {
    if (index.defined() && index.dtype() == Dtype::i32)
      f(value, std::int32_t{});
    else
      f(value, std::uint8_t{});
  });
}

template <class F>
void for_planes(const PoolSize& s, F&& f) {
  parallel_for(s.planes, 1 + worth_a_thread / (s.h * s.w),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t plane = begin; plane < end; ++plane) f(plane);
               });
}

}  // namespace

void cpu::max_pool2d(const PoolSize& s, const Tensor& x, Tensor& index, Tensor& y) {
  visit_types(x, index, [&](auto value, auto place) {
    using T = decltype(value);
    using I = decltype(place);
    I* places = index.defined() ? index.data<I>() : nullptr;
    const T* from = x.data<T>();
    T* to = y.data<T>();
    for_planes(s, [&](std::int64_t plane) {
      pool_plane(s, from + plane * s.h * s.w, places ? places + plane * s.p * s.q : nullptr,
                 to + plane * s.p * s.q);
    });
  });
}

void cpu::max_pool2d_backward(const PoolSize& s, const Tensor& index, const Tensor& dy,
                              Tensor& dx) {
  visit_types(dy, index, [&](auto value, auto place) {
    using T = decltype(value);
    using I = decltype(place);
    const Offsets offsets(s);
    const I* places = index.data<I>();
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    for_planes(s, [&](std::int64_t plane) {
      const std::int64_t at = plane * s.p * s.q;
      scatter_plane(s, offsets, places + at, from + at, to + plane * s.h * s.w);
    });
  });
}

}  // namespace ebb
