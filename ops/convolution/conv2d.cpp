#include "ebb/ops/convolution/conv2d.h"

#include "ebb/core/parallel.h"
#include "ebb/ops/convolution/direct.h"

namespace ebb {
namespace {

constexpr std::int64_t largest = std::int64_t{1} << 31;  // keeps every size below 2⁶³

void require_options(std::string_view op, const Conv2dOptions& o) {
  const auto within = [](Pair p, std::int64_t low) { return p.h >= low && p.w >= low; };
  const auto small = [](Pair p) { return p.h <= largest && p.w <= largest; };
  require(within(o.stride, 1), Kind::value, op, "stride is too small", o.stride, "at least 1");
  require(within(o.padding, 0), Kind::value, op, "padding is negative", o.padding, "at least 0");
  require(within(o.dilation, 1), Kind::value, op, "dilation is too small", o.dilation,
          "at least 1");
  require(o.groups >= 1, Kind::value, op, "groups are too few", o.groups, "at least 1");
  require(small(o.stride) && small(o.padding) && small(o.dilation), Kind::limit, op,
          "stride, padding or dilation is too large",
          text(o.stride, ", ", o.padding, ", ", o.dilation), text("at most ", largest));
}

void require_channels(std::string_view op, const Tensor& x, const Tensor& w, std::int64_t groups) {
  require(x.rank() == 4, Kind::shape, op, "x must be [N,C,H,W]", x.shape(), "4 dimensions");
  require(w.rank() == 4, Kind::shape, op, "w must be [K,C/groups,R,S]", w.shape(), "4 dimensions");
  require(w.size(2) > 0 && w.size(3) > 0, Kind::shape, op, "the kernel has a side of 0", w.shape(),
          "sides of at least 1");
  require(w.size(2) <= largest && w.size(3) <= largest, Kind::limit, op, "the kernel is too large",
          w.shape(), text("sides of at most ", largest));
  require(x.size(1) % groups == 0, Kind::value, op, "groups do not divide the input channels",
          text(groups, " groups, ", x.size(1), " channels"), "a divisor");
  require(w.size(0) % groups == 0, Kind::value, op, "groups do not divide the output channels",
          text(groups, " groups, ", w.size(0), " channels"), "a divisor");
  require(x.size(1) / groups == w.size(1), Kind::shape, op, "x and w differ in channels",
          text("input ", x.size(1), ", weight expects ", w.size(1) * groups), "as many");
}

// ⌊(size + 2·padding − dilation·(kernel−1) − 1) / stride⌋ + 1
std::int64_t output_extent(std::string_view op, std::int64_t size, std::int64_t kernel,
                           std::int64_t stride, std::int64_t padding, std::int64_t dilation) {
  const std::int64_t padded = size + 2 * padding;
  const std::int64_t reach = dilation * (kernel - 1) + 1;
  require(reach <= padded, Kind::shape, op, "the kernel is larger than the padded input",
          text("kernel over ", reach, ", input ", padded), "an output of at least 1");
  return (padded - reach) / stride + 1;
}

Conv2dSize checked_size(std::string_view op, const Tensor& x, const Tensor& w, const Tensor& b,
                        const Conv2dOptions& o) {
  require_floating(op, "x", x);
  require_alike(op, "x", x, "w", w);
  require_options(op, o);
  require_channels(op, x, w, o.groups);
  if (b.defined()) {
    require_alike(op, "x", x, "b", b);
    require_shape(op, "b", b, {w.size(0)});
  }
  const Conv2dSize size{
      x.size(0),
      x.size(1),
      x.size(2),
      x.size(3),
      w.size(0),
      w.size(2),
      w.size(3),
      output_extent(op, x.size(2), w.size(2), o.stride.h, o.padding.h, o.dilation.h),
      output_extent(op, x.size(3), w.size(3), o.stride.w, o.padding.w, o.dilation.w),
      o};
  checked_bytes(op, Shape({size.n, size.k, size.p, size.q}, op), size_of(x.dtype()));
  return size;
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& w, const Tensor& b, Conv2dOptions options) {
  return convolve("conv2d", x, w, b, options);
}

Tensor convolve(const char* op, const Tensor& x, const Tensor& w, const Tensor& b,
                const Conv2dOptions& options) {
  const Conv2dSize size = checked_size(op, x, w, b, options);
  Tensor y = empty({size.n, size.k, size.p, size.q}, x.options());
  run<cpu::conv2d, gpu::conv2d>(x.device(), size, x, w, b, y);
  const bool dx_wanted = x.requires_grad(), dw_wanted = w.requires_grad();
  const bool db_wanted = b.defined() && b.requires_grad();
  const Shape x_shape = x.shape(), w_shape = w.shape();
  const bool biased = b.defined();
  const std::vector<Tensor> inputs = biased ? std::vector{x, w, b} : std::vector{x, w};
  return record(op, y, inputs,
                [=, x = dw_wanted ? Saved(x) : Saved(),
                 w = dx_wanted ? Saved(w) : Saved()](const Tensor& dy) -> Gradients {
                  Tensor dx, dw, db;
                  if (dw_wanted) dw = empty(w_shape, dy.options());
                  if (db_wanted) db = empty({size.k}, dy.options());
                  if (dx_wanted) dx = empty(x_shape, dy.options());
                  run<cpu::conv2d_backward, gpu::conv2d_backward>(
                      dy.device(), size, dw_wanted ? x.get() : Tensor(),
                      dx_wanted ? w.get() : Tensor(), dy, dx, dw, db);
                  return biased ? Gradients{dx, dw, db} : Gradients{dx, dw};
                });
}

// ---- CPU: every pass is a correlation of direct.h or its weight gradient ----

namespace {

using namespace cpu::direct;
using cpu::lanes;

constexpr std::int64_t staged_elements = 1 << 17;  // half of the second-level cache in f32
constexpr std::int64_t shares = 16;  // into which work is split at least, whatever the threads

// How the input of one strip of output rows is laid out: in place, or staged with its padding, the
// columns of one remainder modulo the stride side by side, without rows and columns no tap sees.
struct Window {
  bool in_place;
  std::int64_t split;          // 1, or the stride: of a staged row's columns into phases
  std::int64_t phases, width;  // of a staged row
  std::int64_t row_stride;     // input rows between output rows
  std::int64_t above;          // input rows of one output row beyond the first
  Correlation sum;

  std::int64_t rows(std::int64_t output_rows) const {
    return (output_rows - 1) * row_stride + 1 + above;
  }
};

// Items that are worth a thread, when all `items` together do so many multiplications.
std::int64_t grain(const Conv2dSize& z, std::int64_t items) {
  constexpr std::int64_t worth = 1 << 17;  // multiplications
  const std::int64_t all = z.n * z.k * z.p * z.q * z.channels_in_group() * z.r * z.s;
  return std::max<std::int64_t>(1, worth * items / std::max<std::int64_t>(1, all));
}

// A small 1×1 without stride and padding has no rows: one long row makes full tiles.
Conv2dSize flattened(Conv2dSize z) {
  const auto& o = z.options;
  const bool small = z.h * z.w <= 8 * chunk_pixels;
  if (small && z.r * z.s == 1 && o.stride.h * o.stride.w == 1 && o.padding.h + o.padding.w == 0) {
    z.w = z.q = z.h * z.w;
    z.h = z.p = 1;
  }
  return z;
}

Window forward_window(const Conv2dSize& z, bool may_stay) {
  const auto& o = z.options;
  Window window{};
  window.in_place = may_stay && o.stride.w == 1 && o.padding.h == 0 && o.padding.w == 0 &&
                    z.channels_in_group() * z.h * z.w <= staged_elements;
  // What one filter adds up along the rows is soon done for twice the columns, sooner than staged.
  window.split = may_stay || o.stride.w > 2 ? o.stride.w : 1;
  window.phases = z.s == 1 ? 1 : window.split;
  const std::int64_t reach = (z.q - 1) * o.stride.w + (z.s - 1) * o.dilation.w + 1;
  window.width = window.in_place ? z.w : (reach + window.split - 1) / window.split;
  window.row_stride = z.r == 1 && !window.in_place ? 1 : o.stride.h;
  window.above = (z.r - 1) * o.dilation.h;
  const std::int64_t row = window.phases * window.width;
  window.sum = {
      z.channels_in_group(),    z.filters_in_group(), z.h * z.w, window.row_stride * row, {},
      o.stride.w / window.split};
  for (std::int64_t r = 0; r < z.r; ++r)
    for (std::int64_t s = 0; s < z.s; ++s) {
      const std::int64_t col = s * o.dilation.w;
      window.sum.taps.push_back(r * o.dilation.h * row + col % window.split * window.width +
                                col / window.split);
    }
  return window;
}

// Output rows a strip has: its input fits the cache, and a batch makes enough strips.
std::int64_t strip_rows(std::int64_t rows, std::int64_t images, std::int64_t input_row,
                        std::int64_t stride, std::int64_t above) {
  const std::int64_t fit =
      (staged_elements / std::max<std::int64_t>(1, input_row) - above) / stride;
  const std::int64_t share = (rows * images + shares - 1) / shares;
  return std::clamp<std::int64_t>(std::min(fit, share), 1, rows);
}

std::vector<std::int64_t> counted(std::int64_t n) {
  std::vector<std::int64_t> all(static_cast<size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) all[static_cast<size_t>(i)] = i;
  return all;
}

std::int64_t packed_size(const auto& sum, auto zero) {
  return padded_filters<decltype(zero)>(sum.filters) * sum.terms();
}

// The input rows for output rows from `row` on, of one image's group: staged into `buffer`, or the
// image itself. Leaves the distance of two channels in window.sum.plane.
template <class T>
const T* windowed(Window& window, const Conv2dSize& z, const T* x, std::int64_t row,
                  std::int64_t rows, T* buffer) {
  const auto& o = z.options;
  if (window.in_place) return x + row * o.stride.h * z.w;
  const std::int64_t height = window.rows(rows);
  window.sum.plane = height * window.phases * window.width;
  const Grid grid{row * o.stride.h - o.padding.h,
                  z.r == 1 ? o.stride.h : 1,
                  height,
                  -o.padding.w,
                  window.split,
                  window.phases,
                  window.width};
  stage(x, window.sum.channels, z.h, z.w, grid, buffer);
  return buffer;
}

template <class T>
void forward(const Conv2dSize& z, const Tensor& x, const Tensor& w, const Tensor& b, Tensor& y) {
  const Window window = forward_window(z, !few<T>(z.filters_in_group()));
  const std::int64_t filters = window.sum.filters, groups = z.options.groups;

  const std::int64_t padded = padded_filters<T>(filters);
  const std::int64_t packed = packed_size(window.sum, T(0));
  Tensor weights = empty({groups * packed}, x.options());
  Tensor bias = zeros({groups * padded}, x.options());
  const auto taps = counted(z.r * z.s);
  for (std::int64_t g = 0; g < groups; ++g) {
    if (b.defined()) std::copy_n(b.data<T>() + g * filters, filters, bias.data<T>() + g * padded);
    pack(w.data<T>() + g * filters * window.sum.terms(), window.sum, window.sum.terms(), z.r * z.s,
         taps, weights.data<T>() + g * packed);
  }
  const std::int64_t row = window.sum.channels * window.phases * window.width;
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
      correlate(own.sum, in, rows, z.q, w_packed + g * packed, b_padded + g * padded,
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
  std::vector<std::int64_t> taps;  // r·S + s
  std::int64_t packed = 0;         // where its weights start
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

Phase make_phase(const Conv2dSize& z, const Reach& rows, const Reach& cols, std::int64_t h,
                 std::int64_t w) {
  const auto& o = z.options;
  const std::int64_t width = cols.span(cols.steps);
  Phase phase{h, w, {z.filters_in_group(), z.channels_in_group(), 0, width, {}, 1}, {}};
  const std::int64_t i = h + o.padding.h, j = w + o.padding.w;
  for (std::int64_t r = 0; r < z.r; ++r)
    for (std::int64_t s = 0; s < z.s; ++s) {
      const std::int64_t down = r * o.dilation.h, right = s * o.dilation.w;
      if ((i - down) % o.stride.h != 0 || (j - right) % o.stride.w != 0) continue;
      phase.taps.push_back(r * z.s + s);
      phase.sum.taps.push_back((i / o.stride.h - rows.first + rows.back - down / o.stride.h) *
                                   width +
                               j / o.stride.w - cols.first + cols.back - right / o.stride.w);
    }
  return phase;
}

template <class T>
void input_gradient(const Conv2dSize& z, const Tensor& w, const Tensor& dy, Tensor& dx) {
  const auto& o = z.options;
  const std::int64_t groups = o.groups, taps = z.r * z.s;
  const std::int64_t filters = z.filters_in_group(), channels = z.channels_in_group();
  const Reach rows(z.h, z.r, o.stride.h, o.padding.h, o.dilation.h);
  const Reach cols(z.w, z.s, o.stride.w, o.padding.w, o.dilation.w);
  std::vector<Phase> phases;
  std::int64_t packed = 0;  // weights of one group
  for (std::int64_t h = 0; h < rows.phases; ++h)
    for (std::int64_t w0 = 0; w0 < cols.phases; ++w0) {
      phases.push_back(make_phase(z, rows, cols, h, w0));
      phases.back().packed = packed;
      packed += packed_size(phases.back().sum, T(0));
    }
  Tensor weights = empty({groups * packed}, w.options());
  for (std::int64_t g = 0; g < groups; ++g)
    for (const Phase& phase : phases)
      pack(w.data<T>() + g * filters * channels * taps, phase.sum, taps, channels * taps,
           phase.taps, weights.data<T>() + g * packed + phase.packed);
  const Tensor bias = zeros({padded_filters<T>(channels)}, w.options());
  const bool in_place = o.stride.h * o.stride.w == 1 && rows.span(z.h) == z.p &&
                        cols.span(z.w) == z.q && o.padding.h + o.padding.w == 0 &&
                        !few<T>(channels) && filters * z.p * z.q <= staged_elements;
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
              Grid{rows.first + first - rows.back, 1, height, cols.first - cols.back, 1, 1, width},
              buffer.data<T>());
      for (Phase& phase : own) {
        const std::int64_t last = (z.h - phase.h + o.stride.h - 1) / o.stride.h;
        const std::int64_t across = (z.w - phase.w + o.stride.w - 1) / o.stride.w;
        phase.sum.plane = in_place ? z.p * z.q : height * width;
        T* out = dx.data<T>() + image * channels * z.h * z.w +
                 (phase.h + first * o.stride.h) * z.w + phase.w;
        correlate(phase.sum, in_place ? in + first * z.q : buffer.data<T>(),
                  std::min(strip, last - first), across,
                  weights.data<T>() + g * packed + phase.packed, bias.data<T>(),
                  Destination<T>{out, z.h * z.w, o.stride.h * z.w, o.stride.w}, work.data<T>());
      }
    }
  });
}

// Images are summed in fixed blocks, each by one thread, and the blocks in order.
template <class T>
struct WeightGradient {
  const Conv2dSize& z;
  const Tensor& x;
  const Tensor& dy;
  Window window = forward_window(z, true);
  int vectors = gradient_vectors<T>(window.sum.filters);
  std::int64_t width = std::max<std::int64_t>(1, vectors* lanes<T>);  // filters in a block
  std::int64_t blocks = (window.sum.filters + width - 1) / width;     // of filters, in a group
  std::int64_t columns = window.sum.terms();

  // One image, one group, filters first … first + width: adds to dw [column][filter].
  void add_image(std::int64_t n, std::int64_t g, std::int64_t first, T* buffer, T* turned, T* dw);
  void add_rows(const T* in, const T* dy_rows, std::int64_t filters, std::int64_t rows, T* turned,
                T* dw);
  std::int64_t strip() const {
    return strip_rows(z.p, shares, window.sum.channels * window.phases * window.width,
                      window.row_stride, window.above);
  }
};

template <class T>
void WeightGradient<T>::add_rows(const T* in, const T* dy_rows, std::int64_t filters,
                                 std::int64_t rows, T* turned, T* dw) {
  std::vector<const T*> at;
  for (std::int64_t c = 0; c < window.sum.channels; ++c)
    for (const std::int64_t tap : window.sum.taps) at.push_back(in + c * window.sum.plane + tap);
  const std::int64_t parts = (z.q + chunk_pixels - 1) / chunk_pixels;
  const std::int64_t rows_at_once = parts > 1 ? 1 : chunk_pixels / z.q;
  for (std::int64_t i = 0; i < rows; i += rows_at_once) {
    const std::int64_t height = std::min(rows_at_once, rows - i);
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t left = z.q * part / parts, right = z.q * (part + 1) / parts;
      const T* from = dy_rows + i * z.q + left;
      const std::int64_t pixels = height * (right - left);
      if (vectors > 0) {
        if (filters < width) std::fill_n(turned, pixels * width, T(0));
        transpose(from, z.p * z.q, filters, pixels, turned, width);
        from = turned;
      }
      const auto add = vectors == 4   ? gradient_columns<T, 4>
                       : vectors == 2 ? gradient_columns<T, 2>
                       : vectors == 1 ? gradient_columns<T, 1>
                                      : gradient_columns<T, 0>;
      add(at.data(), columns, window.sum.row_step, from, height, right - left, dw);
      for (const T*& p : at) p += right - left;
    }
    for (const T*& p : at) p += height * window.sum.row_step - z.q;
  }
}

template <class T>
void WeightGradient<T>::add_image(std::int64_t n, std::int64_t g, std::int64_t first, T* buffer,
                                  T* turned, T* dw) {
  const std::int64_t most = strip();
  const std::int64_t filter = g * window.sum.filters + first;
  const T* image = x.data<T>() + (n * z.c + g * window.sum.channels) * z.h * z.w;
  const T* dy_plane = dy.data<T>() + (n * z.k + filter) * z.p * z.q;
  for (std::int64_t row = 0; row < z.p; row += most) {
    const std::int64_t rows = std::min(most, z.p - row);
    const T* in = windowed(window, z, image, row, rows, buffer);
    add_rows(in, dy_plane + row * z.q, std::min(width, window.sum.filters - first), rows, turned,
             dw);
  }
}

// dw [filter][column] = Σ of the parts [blocks][column][filter] in their order, some columns at a
// time.
template <class T>
void add_parts(const WeightGradient<T>& shape, const T* partial, std::int64_t parts,
               std::int64_t blocks, T* dw) {
  constexpr std::int64_t some = 64;
  const std::int64_t filters = shape.window.sum.filters, columns = shape.columns;
  const std::int64_t chunks = (columns + some - 1) / some,
                     part_size = blocks * columns * shape.width;
  const std::int64_t worth = (1 << 15) / (parts * some * shape.width) + 1;
  parallel_for(blocks * chunks, worth, [&](std::int64_t begin, std::int64_t end) {
    cpu::Array<T> sum(some * shape.width);
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t b = item / chunks, column = item % chunks * some;
      const std::int64_t count = std::min(some, columns - column), size = count * shape.width;
      const T* from = partial + (b * columns + column) * shape.width;
      sum.head(size) = cpu::array(from, size);
      for (std::int64_t part = 1; part < parts; ++part)
        sum.head(size) += cpu::array(from + part * part_size, size);
      const std::int64_t first = b % shape.blocks * shape.width;
      transpose(sum.data(), shape.width, count, std::min(shape.width, filters - first),
                dw + (b / shape.blocks * filters + first) * columns + column, columns);
    }
  });
}

template <class T>
void weight_gradient(const Conv2dSize& z, const Tensor& x, const Tensor& dy, Tensor& dw) {
  const WeightGradient<T> shape{z, x, dy};
  const std::int64_t block = shape.columns * shape.width;  // elements
  const std::int64_t blocks = z.options.groups * shape.blocks;
  constexpr std::int64_t most_partial = std::int64_t{1} << 22;  // elements of all partial sums
  const std::int64_t enough = (shares + blocks - 1) / std::max<std::int64_t>(1, blocks);
  const std::int64_t parts =
      std::clamp<std::int64_t>(most_partial / std::max<std::int64_t>(1, blocks * block), 1,
                               std::clamp<std::int64_t>(z.n, 1, std::max<std::int64_t>(1, enough)));
  Tensor partial = zeros({parts, blocks, block}, x.options());
  parallel_for(parts * blocks, grain(z, parts * blocks), [&](std::int64_t begin, std::int64_t end) {
    WeightGradient<T> own = shape;
    const std::int64_t row = own.window.sum.channels * own.window.phases * own.window.width;
    const std::int64_t staged = own.window.rows(own.strip()) * row;
    Tensor buffer = empty({own.window.in_place ? 0 : staged}, x.options());
    Tensor turned = empty({chunk_pixels * own.width}, x.options());
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t part = item / blocks, g = item % blocks / own.blocks;
      const std::int64_t first = item % own.blocks * own.width;
      for (std::int64_t n = z.n * part / parts; n < z.n * (part + 1) / parts; ++n)
        own.add_image(n, g, first, buffer.data<T>(), turned.data<T>(),
                      partial.data<T>() + item * block);
    }
  });
  add_parts(shape, partial.data<T>(), parts, blocks, dw.data<T>());
}

template <class T>
void bias_gradient(const Tensor& dy, Tensor& db) {
  const std::int64_t plane = dy.size(2) * dy.size(3);
  const std::int64_t worth = (1 << 15) / std::max<std::int64_t>(1, dy.size(0) * plane);
  parallel_for(dy.size(1), worth, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      double sum = 0;
      for (std::int64_t n = 0; n < dy.size(0); ++n)
        sum += cpu::array(dy.data<T>() + (n * dy.size(1) + k) * plane, plane).sum();
      db.data<T>()[k] = static_cast<T>(sum);
    }
  });
}

}  // namespace

void cpu::conv2d(const Conv2dSize& size, const Tensor& x, const Tensor& w, const Tensor& b,
                 Tensor& y) {
  visit<float, double>(x.dtype(), "conv2d",
                       [&](auto zero) { forward<decltype(zero)>(flattened(size), x, w, b, y); });
}

void cpu::conv2d_backward(const Conv2dSize& size, const Tensor& x, const Tensor& w,
                          const Tensor& dy, Tensor& dx, Tensor& dw, Tensor& db) {
  visit<float, double>(dy.dtype(), "conv2d", [&](auto zero) {
    using T = decltype(zero);
    if (dw.defined()) weight_gradient<T>(flattened(size), x, dy, dw);
    if (db.defined()) bias_gradient<T>(dy, db);
    if (dx.defined()) input_gradient<T>(flattened(size), w, dy, dx);
  });
}

}  // namespace ebb
