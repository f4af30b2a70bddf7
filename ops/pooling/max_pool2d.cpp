#include "ebb/ops/pooling/max_pool2d.h"

#include <limits>
#include <vector>

#include "ebb/ops/map.h"
#include "ebb/ops/pooling/columns.h"
#include "ebb/ops/side_by_side.h"

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
  run_as_is<cpu::max_pool2d, gpu::max_pool2d>(x.device(), size, x, index, y);
  return record(op, y, {x}, [size, index, shape = x.shape()](const Tensor& dy) -> Gradients {
    Tensor dx = empty(shape, dy.options());
    run_as_is<cpu::max_pool2d_backward, gpu::max_pool2d_backward>(dy.device(), size, index, dy, dx);
    return {dx};
  });
}

namespace {

// Taps [begin, end) of a window lie inside the image, along one dimension; tap 0 would be at
// `start`.
struct Taps {
  std::int64_t start, begin, end;

  Taps(std::int64_t start, std::int64_t extent, std::int64_t kernel, std::int64_t dilation)
      : start(start),
        begin(start < 0 ? (-start + dilation - 1) / dilation : 0),
        end(std::min(kernel, (extent - start + dilation - 1) / dilation)) {}
};

Taps down(const PoolSize& s, std::int64_t p) {
  return {p * s.stride_h - s.padding_h, s.h, s.kernel_h, s.dilation_h};
}
Taps across(const PoolSize& s, std::int64_t q) {
  return {q * s.stride_w - s.padding_w, s.w, s.kernel_w, s.dilation_w};
}

bool are_pairs(const PoolSize& s) {
  return s.stride_w == 2 && s.kernel_w == 2 && s.dilation_w == 1;
}

// One output of a plane, or of planes side by side, from its window: the largest and its place,
// which is −1 where there is none.
template <class V, class P>
void pool_window(const PoolSize& s, const V* x, Taps down, Taps across, V* y, P* index) {
  using cpu::not_at_most, cpu::select;
  const auto tap = [&](std::int64_t r, std::int64_t c) {
    return x[(down.start + r * s.dilation_h) * s.w + across.start + c * s.dilation_w];
  };
  const bool empty = down.begin >= down.end || across.begin >= across.end;
  V best = empty ? V(-std::numeric_limits<float>::infinity()) : tap(down.begin, across.begin);
  P place = P(empty ? -1 : down.begin * s.kernel_w + across.begin);
  for (std::int64_t r = down.begin; r < down.end; ++r)
    for (std::int64_t c = across.begin; c < across.end; ++c) {
      const V v = tap(r, c);
      const auto better = (best < v) | not_at_most(v, v);
      best = select(better, v, best);
      if (index) place = select(better, P(r * s.kernel_w + c), place);
    }
  *y = best;
  if (index) *index = place;
}

// As wide as the values, so that the compiler turns a choice of both into SIMD.
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

// The outputs [q, q + n) of a row, whose windows lie in the image's width.
template <class T>
void pool_columns(const PoolSize& s, const T* x, Taps rows, std::int64_t q, std::int64_t n,
                  Place<T>* place, T* best) {
  const std::int64_t whole = cpu::whole_registers(n);
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const std::int64_t at = (rows.start + r * s.dilation_h) * s.w + q * s.stride_w - s.padding_w;
    cpu::RowTaps<T> taps(s, x + at, s.h * s.w - at, n);
    for (std::int64_t c = 0; c < s.kernel_w; ++c) {
      const T* v = taps.at(c);
      const auto here = static_cast<Place<T>>(r * s.kernel_w + c);
      if (r == rows.begin && c == 0) {
        std::copy_n(v, whole, best);
        std::fill_n(place, whole, here);
        continue;
      }
#pragma omp simd
      for (std::int64_t i = 0; i < whole; ++i) {
        const bool better = (v[i] > best[i]) | std::isnan(v[i]);
        best[i] = better ? v[i] : best[i];
        place[i] = better ? here : place[i];
      }
    }
  }
}

template <class T>
cpu::Simd<T> larger(cpu::Simd<T> best, cpu::Simd<T> v) {
  return select(beats(v, best), v, best);
}

// The same where no one asks for places and windows are a pixel apart: n is a register or more.
template <class T>
void pool_neighbours(const PoolSize& s, const T* x, Taps rows, std::int64_t q, std::int64_t n,
                     T* y) {
  using V = cpu::Simd<T>;
  constexpr std::int64_t l = cpu::lanes<T>;
  const T* first = x + (rows.start + rows.begin * s.dilation_h) * s.w + q - s.padding_w;
  const auto registers = [&]<int many>(std::integral_constant<int, many>, std::int64_t i) {
    cpu::Packet<T> best[many];
    for (int k = 0; k < many; ++k) best[k] = V::load(first + i + k * l).v;
    for (std::int64_t r = 0; r < rows.end - rows.begin; ++r)
      for (std::int64_t c = r == 0 ? 1 : 0; c < s.kernel_w; ++c) {
        const T* v = first + i + r * s.dilation_h * s.w + c * s.dilation_w;
        for (int k = 0; k < many; ++k) best[k] = larger(V::of(best[k]), V::load(v + k * l)).v;
      }
    for (int k = 0; k < many; ++k) V::of(best[k]).store(y + i + k * l);
  };
  std::int64_t i = 0;
  for (; i + 4 * l <= n; i += 4 * l) registers(std::integral_constant<int, 4>(), i);
  for (; i < n; i += l) registers(std::integral_constant<int, 1>(), std::min(i, n - l));
}

// And where they are pairs of pixels: even and odd ones are parted in registers.
template <class T>
void pool_pairs(const PoolSize& s, const T* x, Taps rows, std::int64_t q, std::int64_t n, T* y) {
  using V = cpu::Simd<T>;
  constexpr std::int64_t l = cpu::lanes<T>;
  const auto larger_of_pairs = [](const T* p) {
    const cpu::Packet<T> a = V::load(p).v, b = V::load(p + l).v;
    return [&]<size_t... i>(std::index_sequence<i...>) {
      return larger(V::of(__builtin_shufflevector(a, b, (2 * int(i))...)),
                    V::of(__builtin_shufflevector(a, b, (2 * int(i) + 1)...)));
    }
    (std::make_index_sequence<l>());
  };
  x += rows.start * s.w + 2 * q - s.padding_w;
  for (std::int64_t at = 0; at < n; at += l) {
    const std::int64_t i = std::min(at, n - l);
    V best = larger_of_pairs(x + rows.begin * s.dilation_h * s.w + 2 * i);
    for (std::int64_t r = rows.begin + 1; r < rows.end; ++r)
      best = larger(best, larger_of_pairs(x + r * s.dilation_h * s.w + 2 * i));
    best.store(y + i);
  }
}

// And where they are further apart, two taps at a time where both can be had.
template <class T>
void pool_values(const PoolSize& s, const T* x, Taps rows, std::int64_t q, std::int64_t n,
                 T* best) {
  const auto larger = [](auto best, auto v) { return ::ebb::larger(best, v); };
  const auto largest = [=](auto best, auto v, auto w) { return larger(larger(best, v), w); };
  const std::int64_t whole = cpu::whole_registers(n);
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const std::int64_t at = (rows.start + r * s.dilation_h) * s.w + q * s.stride_w - s.padding_w;
    cpu::RowTaps<T> taps(s, x + at, s.h * s.w - at, n);
    std::int64_t c = 0;
    if (r == rows.begin) std::copy_n(taps.at(c++), whole, best);
    for (; c + 2 <= s.kernel_w && taps.side_by_side(c + 1); c += 2)
      cpu::map_row(best, whole, largest, best, taps.at(c), taps.at(c + 1));
    for (; c < s.kernel_w; ++c) cpu::map_row(best, whole, larger, best, taps.at(c));
  }
}

template <class T, class I>
void pool_row(const PoolSize& s, const T* x, std::int64_t p, I* index, T* y) {
  const Taps rows = down(s, p);
  cpu::Columns inside(s, 4);
  if (rows.begin >= rows.end) inside.end = inside.begin;
  const auto edges = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t q = begin; q < end; ++q) {
      std::int64_t place;
      pool_window(s, x, rows, across(s, q), y + q, &place);
      if (index) index[q] = static_cast<I>(place);
    }
  };
  edges(0, inside.begin);
  edges(inside.end, s.q);
  const std::int64_t count = inside.end - inside.begin;
  if (!index && count >= cpu::lanes<T>) {
    if (s.stride_w == 1) return pool_neighbours(s, x, rows, inside.begin, count, y + inside.begin);
    if (are_pairs(s)) return pool_pairs(s, x, rows, inside.begin, count, y + inside.begin);
  }
  for (std::int64_t q = inside.begin; q < inside.end; q += cpu::pool_block) {
    const std::int64_t n = std::min(cpu::pool_block, inside.end - q);
    Place<T> place[cpu::pool_block];
    T best[cpu::pool_block];
    if (index) {
      pool_columns(s, x, rows, q, n, place, best);
    } else {
      pool_values(s, x, rows, q, n, best);
    }
    std::copy_n(best, n, y + q);
    for (std::int64_t i = 0; i < n && index; ++i) index[q + i] = static_cast<I>(place[i]);
  }
}

template <class T, class I>
void pool_plane(const PoolSize& s, const T* x, I* index, T* y) {
  for (std::int64_t p = 0; p < s.p; ++p)
    pool_row(s, x, p, index ? index + p * s.q : nullptr, y + p * s.q);
}

// Places are numbers among numbers here, exact ones.
template <class T, class I>
void pool_planes(const PoolSize& s, const std::vector<Taps>& columns, std::int64_t count,
                 const T* x, I* index, T* y) {
  using V = cpu::Simd<T>;
  const std::int64_t n = s.h * s.w, outputs = s.p * s.q;
  static thread_local std::vector<V> near;
  near.resize(static_cast<size_t>(n + 2 * outputs), V(0));
  V *best = near.data() + n, *place = best + outputs;
  cpu::side_by_side(x, n, count, near.data());
  for (std::int64_t p = 0, i = 0; p < s.p; ++p) {
    const Taps rows = down(s, p);
    for (const Taps& taps : columns) {
      pool_window(s, near.data(), rows, taps, best + i, index ? place + i : nullptr);
      ++i;
    }
  }
  cpu::row_by_row(best, outputs, count, y);
  if (!index) return;
  T* flat = reinterpret_cast<T*>(near.data());
  cpu::row_by_row(place, outputs, count, flat);
  for (std::int64_t i = 0; i < count * outputs; ++i)
    index[i] = static_cast<I>(static_cast<std::int32_t>(flat[i]));
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

// The gradients of some planes belong to one thread, which adds in the order of the outputs.
template <class I, class T, class Sum>
void scatter_planes(const PoolSize& s, const Offsets& offsets, std::int64_t count, const I* index,
                    const T* dy, Sum* dx) {
  constexpr I nowhere = static_cast<I>(-1);
  std::fill_n(dx, count * s.h * s.w, Sum(0));
  for (std::int64_t i = 0; i < count * s.p; ++i, index += s.q, dy += s.q) {
    const std::int64_t plane = i / s.p, h = i % s.p * s.stride_h - s.padding_h;
    Sum* row = dx + (plane * s.h + h) * s.w - s.padding_w;
    for (std::int64_t q = 0; q < s.q; ++q) {
      const I place = index[q];
      if (place != nowhere) row[q * s.stride_w + offsets[place]] += Sum(cpu::wide(dy[q]));
    }
  }
}

// How many windows see a pixel, at most.
std::int64_t seers(const PoolSize& s) {
  const auto along = [](std::int64_t windows, std::int64_t kernel, std::int64_t stride,
                        std::int64_t dilation) {
    return std::min(windows, dilation > 1 ? kernel : (kernel + stride - 1) / stride);
  };
  return along(s.p, s.kernel_h, s.stride_h, s.dilation_h) *
         along(s.q, s.kernel_w, s.stride_w, s.dilation_w);
}

// f(T{}, I{}) with the types of the values and of the index.
template <class F>
void visit_types(const Tensor& x, const Tensor& index, F&& f) {
  visit<float, double, bf16>(x.dtype(), "max_pool2d", [&](auto value) {
    if (index.defined() && index.dtype() == Dtype::i32)
      f(value, std::int32_t{});
    else
      f(value, std::uint8_t{});
  });
}

}  // namespace

void cpu::max_pool2d(const PoolSize& s, const Tensor& x, Tensor& index, Tensor& y) {
  visit_types(x, index, [&](auto value, auto place) {
    using T = decltype(value);
    using W = Wide<T>;
    using I = decltype(place);
    I* places = index.defined() ? index.data<I>() : nullptr;
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const std::int64_t worth_a_row = (s.stride_w == 1 ? 4 : 8) * lanes<W>;
    const bool by_rows = !places && (s.stride_w == 1 || are_pairs(s)) && s.q >= worth_a_row;
    const std::int64_t together = by_rows ? 1 : planes_together<W>(s);
    std::vector<Taps> columns;
    for (std::int64_t q = 0; q < s.q && together > 1; ++q) columns.push_back(across(s, q));
    for_planes(s, together, [&](std::int64_t plane, std::int64_t count) {
      const std::int64_t n = s.h * s.w, m = s.p * s.q;
      I* index = places ? places + plane * m : nullptr;
      with_numbers_as<W>(from + plane * n, count * n, to + plane * m, count * m,
                         [&](const W* x, W* y) {
                           if (count == 1) return pool_plane(s, x, index, y);
                           pool_planes(s, columns, count, x, index, y);
                         });
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
    const std::int64_t size = s.h * s.w, together = 1 + 1024 / size;
    const bool many = seers(s) > few_terms;
    for_planes(s, together, [&](std::int64_t plane, std::int64_t count) {
      const std::int64_t at = plane * s.p * s.q;
      const auto scatter = [&](auto zero) {
        with_numbers_as<decltype(zero)>(static_cast<const T*>(nullptr), 0, to + plane * size,
                                        count * size, [&](auto, auto* sums) {
                                          scatter_planes(s, offsets, count, places + at, from + at,
                                                         sums);
                                        });
      };
      many ? scatter(0.0) : scatter(Wide<T>(0));
    });
  });
}

}  // namespace ebb
