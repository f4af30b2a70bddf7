// The forward pass and the input gradient on the CPU: correlations, one or one a phase.
#include "ebb/ops/convolution/cpu_correlate.h"

namespace ebb {
namespace {

using namespace cpu::direct;
using cpu::lanes;

// Whether filters are so few that vectors run along rows, where all columns between the results are
// worked out too.
template <class T>
bool along_rows(std::int64_t filters, std::int64_t stride) {
  return stride <= 2 && 2 * filters * stride <= lanes<T>;
}

std::int64_t packed_size(const auto& sum, auto zero) {
  return padded_filters<decltype(zero)>(sum.filters) * sum.terms();
}

template <class T, bool pairs>
void forward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  const Window window = forward_window(z, along_rows<T>(z.filters_in_group(), z.options.stride.w));
  const std::int64_t filters = window.sum.filters, groups = z.options.groups;

  const std::int64_t padded = padded_filters<T>(filters);
  const std::int64_t packed = packed_size(window.sum, T(0));
  Tensor weights = empty({groups * packed}, x.options());
  Tensor bias = zeros({groups * padded}, x.options());
  for (std::int64_t g = 0; g < groups; ++g) {
    if (b.defined()) std::copy_n(b.data<T>() + g * filters, filters, bias.data<T>() + g * padded);
    pack(w.data<T>() + g * filters * window.sum.terms(), window.sum, window.sum.terms(), z.r * z.s,
         weights.data<T>() + g * packed);
  }
  const std::int64_t row = window.sum.channels * window.width;
  const std::int64_t strip = strip_rows(z.p, z.n * groups, row, window.row_stride, window.above);
  const std::int64_t strips = (z.p + strip - 1) / strip, items = z.n * groups * strips;
  const T *from = x.data<T>(), *w_packed = weights.data<T>(), *b_padded = bias.data<T>();
  T* to = y.data<T>();
  parallel_for(items, grain(z, items), [&](std::int64_t begin, std::int64_t end) {
    Window own = window;
    Tensor work = empty({work_size<T>()}, x.options());
    const std::int64_t staged = window.rows(strip) * row;
    Tensor buffer = empty({window.in_place ? 0 : staged + lanes<T>}, x.options());
    T *const strip_of_x = buffer.data<T>(), *const scratch = work.data<T>();
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t image = item / strips, g = image % groups, first = item % strips * strip;
      const std::int64_t rows = std::min(strip, z.p - first);
      const T* in =
          windowed(own, z, from + image * window.sum.channels * z.h * z.w, first, rows, strip_of_x);
      T* out = to + (image * filters * z.p + first) * z.q;
      correlate<T, pairs>(own.sum, in, rows, z.q, w_packed + g * packed, b_padded + g * padded,
                          Destination<T>{out, z.p * z.q, z.q, 1}, scratch);
    }
  });
}

// Input pixels h ≡ h₀, w ≡ w₀ modulo the stride see the same taps: each such phase is a correlation
// of dy in steps of one. With p = (h + padding − r·dilation) / stride, row m of a phase starts from
// row ⌊(h₀ + padding) / stride⌋ + m of dy and looks ⌊r·dilation / stride⌋ rows back.
struct Phase {
  std::int64_t h, w;
  Correlation sum;
};

// One dimension of the input gradient.
struct Reach {
  std::int64_t phases, first, last, back;  // rows of dy where phases start; rows they look back
  std::int64_t steps;                      // rows of the longest phase

  Reach(std::int64_t size, std::int64_t kernel, std::int64_t stride, std::int64_t padding,
        std::int64_t dilation)
      : phases(std::min(stride, size)),
        first(padding / stride),
        last((std::max<std::int64_t>(phases, 1) - 1 + padding) / stride),
        back((kernel - 1) * dilation / stride),
        steps((size + stride - 1) / stride) {}
  std::int64_t span(std::int64_t rows) const { return rows + last - first + back; }
};

Phase make_phase(const Conv2dSize& z, const Reach& rows, const Reach& cols, bool along_rows,
                 std::int64_t h, std::int64_t w) {
  const auto& o = z.options;
  const std::int64_t width = cols.span(cols.steps);
  Phase phase{
      h,
      w,
      {z.filters_in_group(), z.channels_in_group(), 0, width, z.r * z.s, {}, {}, 1, along_rows}};
  const std::int64_t i = h + o.padding.h, j = w + o.padding.w;
  for (std::int64_t r = 0; r < z.r; ++r)
    for (std::int64_t s = 0; s < z.s; ++s) {
      const std::int64_t down = r * o.dilation.h, right = s * o.dilation.w;
      if ((i - down) % o.stride.h != 0 || (j - right) % o.stride.w != 0) continue;
      phase.sum.add_tap((i / o.stride.h - rows.first + rows.back - down / o.stride.h) * width +
                            j / o.stride.w - cols.first + cols.back - right / o.stride.w,
                        r * z.s + s);
    }
  return phase;
}

template <class T, bool pairs>
void input_gradient(const Conv2dSize& z, const Tensor& w, const Tensor& dy, Tensor& dx) {
  const auto& o = z.options;
  const std::int64_t groups = o.groups, taps = z.r * z.s;
  const std::int64_t filters = z.filters_in_group(), channels = z.channels_in_group();
  const Reach rows(z.h, z.r, o.stride.h, o.padding.h, o.dilation.h);
  const Reach cols(z.w, z.s, o.stride.w, o.padding.w, o.dilation.w);
  const bool in_rows = along_rows<T>(channels, 1);
  std::vector<Phase> phases;
  for (std::int64_t h = 0; h < rows.phases; ++h)
    for (std::int64_t w0 = 0; w0 < cols.phases; ++w0)
      phases.push_back(make_phase(z, rows, cols, in_rows, h, w0));
  const std::int64_t packed = phases.empty() ? 0 : packed_size(phases.front().sum, T(0));
  Tensor weights = empty({groups * packed}, w.options());
  for (std::int64_t g = 0; g < groups && packed > 0; ++g)
    pack(w.data<T>() + g * filters * channels * taps, phases.front().sum, taps, channels * taps,
         weights.data<T>() + g * packed);
  const Tensor bias = zeros({padded_filters<T>(channels)}, w.options());
  const bool in_place = o.stride.h * o.stride.w == 1 && rows.span(z.h) == z.p &&
                        cols.span(z.w) == z.q && o.padding.h + o.padding.w == 0 && !in_rows &&
                        filters * z.p * z.q <= staged_elements;
  const std::int64_t width = cols.span(cols.steps);
  const std::int64_t strip = strip_rows(rows.steps, z.n * groups, filters * width, 1, rows.span(0));
  const std::int64_t strips = (rows.steps + strip - 1) / strip, items = z.n * groups * strips;
  parallel_for(items, grain(z, items), [&](std::int64_t begin, std::int64_t end) {
    std::vector<Phase> own = phases;
    Tensor work = empty({work_size<T>()}, w.options());
    const std::int64_t staged = filters * rows.span(strip) * width;
    Tensor buffer = empty({in_place ? 0 : staged + lanes<T>}, w.options());
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t image = item / strips, g = image % groups, first = item % strips * strip;
      const std::int64_t height = rows.span(std::min(strip, rows.steps - first));
      const T* in = dy.data<T>() + image * filters * z.p * z.q;
      if (!in_place)
        stage(in, filters, z.p, z.q,
              Grid{rows.first + first - rows.back, 1, height, cols.first - cols.back, 1, width},
              buffer.data<T>());
      for (Phase& phase : own) {
        const std::int64_t last = (z.h - phase.h + o.stride.h - 1) / o.stride.h;
        const std::int64_t across = (z.w - phase.w + o.stride.w - 1) / o.stride.w;
        phase.sum.plane = in_place ? z.p * z.q : height * width;
        T* out = dx.data<T>() + image * channels * z.h * z.w +
                 (phase.h + first * o.stride.h) * z.w + phase.w;
        correlate<T, pairs>(
            phase.sum, in_place ? in + first * z.q : buffer.data<T>(),
            std::min(strip, last - first), across, weights.data<T>() + g * packed, bias.data<T>(),
            Destination<T>{out, z.h * z.w, o.stride.h * z.w, o.stride.w}, work.data<T>());
      }
    }
  });
}

}  // namespace

void cpu::direct::convolve(const Conv2dSize& size, bool pairs, const Tensor& x, const Tensor& w,
                           const Tensor& b, Tensor& y) {
  visit_numbers(x.dtype(), pairs,
                [&]<class T, bool pairs>() { forward<T, pairs>(flattened(size), x, w, b, y); });
}

void cpu::direct::input_gradient(const Conv2dSize& size, bool pairs, const Tensor& w,
                                 const Tensor& dy, Tensor& dx) {
  visit_numbers(dy.dtype(), pairs, [&]<class T, bool pairs>() {
    ebb::input_gradient<T, pairs>(flattened(size), w, dy, dx);
  });
}

}  // namespace ebb
