#include "ebb/ops/pooling/max_pool2d.h"

#include <limits>

#include "ebb/core/parallel.h"

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

// Rows of pairs of pairs: written so that the compiler turns it into SIMD, with the index as wide
// as the values until it is stored.
template <class T, class I>
void pool_pairs(const T* top, const T* bottom, std::int64_t q, I* index, T* y) {
  using Wide = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr std::int64_t block = 64;
  Wide places[block];
  for (std::int64_t first = 0; first < q; first += block) {
    const std::int64_t n = std::min(block, q - first);
    for (std::int64_t i = 0; i < n; ++i) {
      const T v[] = {top[2 * (first + i)], top[2 * (first + i) + 1], bottom[2 * (first + i)],
                     bottom[2 * (first + i) + 1]};
      T best = v[0];
      Wide place = 0;
      for (Wide k = 1; k < 4; ++k) {
        const bool better = (v[k] > best) | (v[k] != v[k]);
        best = better ? v[k] : best;
        place = better ? k : place;
      }
      y[first + i] = best;
      places[i] = place;
    }
    for (std::int64_t i = 0; i < n && index; ++i) index[first + i] = static_cast<I>(places[i]);
  }
}

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

// Output rows and columns whose windows are whole pairs of pairs, 2 × 2 in steps of 2: 0 if not so.
struct Pairs {
  std::int64_t p = 0, q = 0;
  explicit Pairs(const PoolSize& s) {
    if (!s.simple(2, 2) || s.padding_h != 0 || s.padding_w != 0) return;
    p = std::min(s.p, s.h / 2);
    q = std::min(s.q, s.w / 2);
  }
};

template <class T, class I>
void pool_plane(const PoolSize& s, const T* x, I* index, T* y) {
  const Pairs pairs(s);
  for (std::int64_t p = 0; p < s.p; ++p) {
    I* places = index ? index + p * s.q : nullptr;
    std::int64_t q = 0;
    if (p < pairs.p) {
      q = pairs.q;
      pool_pairs(x + 2 * p * s.w, x + (2 * p + 1) * s.w, q, places, y + p * s.q);
    }
    for (; q < s.q; ++q) pool_window(s, x, p, q, places ? places + q : nullptr, y + p * s.q + q);
  }
}

// SIMD as well: the index becomes as wide as the values, and no choice is between memory accesses.
template <class T, class I>
void scatter_pairs(const I* index, const T* dy, std::int64_t q, T* top, T* bottom) {
  using Wide = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr std::int64_t block = 64;
  Wide places[block];
  T values[block];
  for (std::int64_t first = 0; first < q; first += block, top += 2 * block, bottom += 2 * block) {
    const std::int64_t n = std::min(block, q - first);
    for (std::int64_t i = 0; i < n; ++i) places[i] = index[first + i];
    std::copy_n(dy + first, n, values);
    for (std::int64_t i = 0; i < n; ++i) {
      const T v = values[i];
      top[2 * i] = places[i] == 0 ? v : T(0);
      top[2 * i + 1] = places[i] == 1 ? v : T(0);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const T v = values[i];
      bottom[2 * i] = places[i] == 2 ? v : T(0);
      bottom[2 * i + 1] = places[i] == 3 ? v : T(0);
    }
  }
}

// The gradient of a plane belongs to one thread, which adds in the order of the outputs.
template <class T, class I>
void scatter_plane(const PoolSize& s, const I* index, const T* dy, T* dx) {
  constexpr I nowhere = static_cast<I>(-1);
  const Pairs pairs(s);
  if (pairs.p * pairs.q * 4 < s.h * s.w) std::fill_n(dx, s.h * s.w, T(0));
  for (std::int64_t p = 0; p < s.p; ++p) {
    std::int64_t q = 0;
    if (p < pairs.p) {
      q = pairs.q;
      scatter_pairs(index + p * s.q, dy + p * s.q, q, dx + 2 * p * s.w, dx + (2 * p + 1) * s.w);
    }
    for (; q < s.q; ++q) {
      const I place = index[p * s.q + q];
      if (place == nowhere) continue;
      const std::int64_t row = place / s.kernel_w;
      const std::int64_t h = p * s.stride_h - s.padding_h + row * s.dilation_h;
      const std::int64_t w =
          q * s.stride_w - s.padding_w + (place - row * s.kernel_w) * s.dilation_w;
      dx[h * s.w + w] += dy[p * s.q + q];
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
    for_planes(s, [&](std::int64_t plane) {
      pool_plane(s, x.data<T>() + plane * s.h * s.w, places ? places + plane * s.p * s.q : nullptr,
                 y.data<T>() + plane * s.p * s.q);
    });
  });
}

void cpu::max_pool2d_backward(const PoolSize& s, const Tensor& index, const Tensor& dy,
                              Tensor& dx) {
  visit_types(dy, index, [&](auto value, auto place) {
    using T = decltype(value);
    using I = decltype(place);
    for_planes(s, [&](std::int64_t plane) {
      const std::int64_t at = plane * s.p * s.q;
      scatter_plane(s, index.data<I>() + at, dy.data<T>() + at, dx.data<T>() + plane * s.h * s.w);
    });
  });
}

}  // namespace ebb
