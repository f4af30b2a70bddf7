// Where a convolution's outputs find its inputs, forward and backward, for all kernels of this
// folder.
//
// An input pixel h is reached from output p by tap r where h = p·stride + r·dilation − padding.
// Forward solves that for h. The input gradient solves it for p, which needs
// h + padding − r·dilation ≡ 0 (mod stride): the pixels h that share a remainder share their taps,
// and along such a class p advances by one as h does by the stride. So each class is a stride-1
// gather over its own taps, and no product with a hole is computed.
#pragma once
#include <algorithm>
#include <numeric>

#include "ebb/ops/convolution/paths.h"
#include "ebb/ops/tiles.cuh"

namespace ebb::gpu::convolution {

constexpr int outside = -(1 << 30);  // a coordinate that no tap brings into an image
__device__ inline bool within(int i, int extent) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(extent);
}

// One spatial axis of a gather, for all classes. Forward has one class.
struct Side {
  bool transposed;  // the input gradient
  int in;           // extent of what is read
  int out;          // extent of what is written
  int kernel, stride, dilation, padding;
  int period;   // taps r and r + period serve the same class
  int classes;  // those that have taps: class z is that of tap z
};

// One class: point i writes out[out_first + i·out_stride] and reads in[i·stride + first + u·step]
// with the kernel's tap tap_first + u·tap_step, for u < taps.
struct Axis {
  int points, out_first, out_stride;
  int stride, first, step;
  int taps, tap_first, tap_step;
  int taps_before;  // of the classes before this one
};

__host__ __device__ inline Axis axis_of(const Side& side, int z) {
  if (!side.transposed)
    return {side.out, 0, 1, side.stride, -side.padding, side.dilation, side.kernel, 0, 1, 0};
  Axis axis;
  const int from = z * side.dilation - side.padding;  // of dy's first element, by tap z
  axis.out_first = (from % side.stride + side.stride) % side.stride;
  axis.out_stride = side.stride;
  axis.points = axis.out_first < side.out ? (side.out - axis.out_first - 1) / side.stride + 1 : 0;
  axis.stride = 1;
  axis.first = (axis.out_first - from) / side.stride;
  axis.step = -(side.dilation / (side.stride / side.period));
  axis.taps = (side.kernel - z - 1) / side.period + 1;
  axis.tap_first = z;
  axis.tap_step = side.period;
  axis.taps_before = z * (side.kernel / side.period) +
                     (z < side.kernel % side.period ? z : side.kernel % side.period);
  return axis;
}

// out[image, group, m, point] = Σ over c, taps of weight[m, c, tap] · in[image, group, c, …].
struct Gather {
  Side h, w;
  std::int64_t images;
  int groups, m, c;                 // m channels written, c read, of each group
  std::int64_t in_plane;            // elements of one channel
  std::int64_t m_stride, c_stride;  // of the weights
  // Weights are packed to [group][rows][columns]: rows (c, tap) of one class after another, each
  // beginning a slab; columns m; zeros beyond. `c_packed` is c, or c rounded up to whole slabs,
  // which then hold one tap each.
  int c_packed;
  std::int64_t rows, columns;

  __host__ __device__ int classes() const { return h.classes * w.classes; }
};

struct Class {
  Axis h, w;
  std::int64_t first_row;  // of its packed weights
  std::int64_t slabs;
};

__device__ inline Class class_of(const Gather& g, int z, int depth = tile_depth) {
  Class c{axis_of(g.h, z / g.w.classes), axis_of(g.w, z % g.w.classes), 0, 0};
  const std::int64_t before =
      std::int64_t{c.h.taps_before} * g.w.kernel + std::int64_t{c.h.taps} * c.w.taps_before;
  c.first_row = (divide_up<std::int64_t>(before * g.c_packed, depth) + z) * depth;
  c.slabs = divide_up<std::int64_t>(std::int64_t{c.h.taps} * c.w.taps * g.c_packed, depth);
  return c;
}

// Groups so thin that tiles would be mostly padding.
inline bool thin(std::int64_t groups, std::int64_t m, std::int64_t c) {
  return groups > 1 && m <= 4 && c <= 4;
}

// Whether no tap reaches some of out.
inline bool gaps(const Gather& g) {
  return g.h.transposed && (g.h.classes < g.h.stride || g.w.classes < g.w.stride);
}

inline int most_points(const Side& side) {
  return side.transposed ? divide_up(side.out, side.stride) : side.out;
}

// Whether every element of out belongs to the one class.
inline bool dense(const Gather& g) {
  return !g.h.transposed || (g.h.stride == 1 && g.w.stride == 1);
}

// How many columns of a tile, aligned in it, are adjacent and aligned in out.
inline int adjacent_columns(const Gather& g) {
  const std::int64_t plane = std::int64_t{g.h.out} * g.w.out;
  return !dense(g) ? 1 : plane % 8 == 0 ? 8 : plane % 4 == 0 ? 4 : 1;
}

// Which point of which image a column of a tile is. There are less than 2³⁰ points, and a tile has
// few columns, so that only its first one takes a division of 64 bits.
class ColumnPoints {
 public:
  __device__ ColumnPoints(std::int64_t first_column, std::int64_t points)
      : image_(first_column / points),
        points_(static_cast<unsigned>(points)),
        first_(static_cast<unsigned>(first_column % points)) {}
  __device__ std::int64_t image(int column) const { return image_ + (first_ + column) / points_; }
  __device__ unsigned point(int column) const { return (first_ + column) % points_; }

 private:
  std::int64_t image_;
  unsigned points_, first_;
};

// Writes sums + add to the places of adjacent columns: `together` of them, at least, are adjacent
// and aligned in out.
template <class Out, class V, int width>
__device__ void store_columns(Out* out, const std::int64_t* places, const Pack<V, width>& sums,
                              V add, int together) {
  Pack<Out, width> results;
#pragma unroll
  for (int j = 0; j < width; ++j) results.v[j] = narrow<Out>(sums.v[j] + add);
  const auto store = [&](auto all) {
    constexpr int pack = decltype(all)::value;
#pragma unroll
    for (int j = 0; j < width; j += pack)
      if (places[j] >= 0) {
        auto* const to = reinterpret_cast<Pack<Out, pack>*>(out + places[j]);
        const auto& from = reinterpret_cast<const Pack<Out, pack>*>(results.v)[j / pack];
        if constexpr (width > 4) {
          gpu::store(to, from);
        } else {
          *to = from;  // in fewer registers
        }
      }
  };
  if (together >= width) {
    store(std::integral_constant<int, width>{});
  } else if (width > 4 && together == 4) {
    store(std::integral_constant<int, 4>{});
  } else {
    store(std::integral_constant<int, 1>{});
  }
}

// Coordinates are int: sums of three extents must fit. Planes and offsets are 64-bit.
inline int extent(std::int64_t value) {
  constexpr std::int64_t most = std::int64_t{1} << 29;
  require(value <= most, Kind::limit, op, "an extent is too large for the GPU", value, most);
  return static_cast<int>(value);
}

inline Side side(bool transposed, std::int64_t image, std::int64_t output, std::int64_t kernel,
                 std::int64_t stride, std::int64_t dilation, std::int64_t padding) {
  extent((kernel - 1) * dilation);
  Side side{transposed,
            extent(transposed ? output : image),
            extent(transposed ? image : output),
            extent(kernel),
            extent(stride),
            extent(dilation),
            extent(padding),
            1,
            1};
  if (transposed) {
    side.period = side.stride / std::gcd(side.stride, side.dilation);
    side.classes = std::min(side.period, side.kernel);
  }
  return side;
}

inline Gather gather_of(const Conv2dSize& size, bool transposed) {
  const Conv2dOptions& o = size.options;
  const std::int64_t taps = size.r * size.s;
  Gather g{};
  g.h = side(transposed, size.h, size.p, size.r, o.stride.h, o.dilation.h, o.padding.h);
  g.w = side(transposed, size.w, size.q, size.s, o.stride.w, o.dilation.w, o.padding.w);
  g.images = size.n;
  g.groups = extent(o.groups);
  g.m = extent(size.filters_in_group());
  g.c = extent(size.channels_in_group());
  g.in_plane = std::int64_t{g.h.in} * g.w.in;
  g.m_stride = g.c * taps;
  g.c_stride = taps;
  if (transposed) {
    std::swap(g.m, g.c);
    std::swap(g.m_stride, g.c_stride);
  }
  return g;
}

// Extents of the weight gradient, in what its loaders need. A matrix's k is the pixel (n, p, q).
struct Weights {
  int c, h, w, m, r, s, p, q;  // c, m: of one group
  int groups;
  int h_stride, w_stride, h_padding, w_padding, h_dilation, w_dilation;
  std::int64_t pixels;             // n·p·q
  std::int64_t x_plane, dy_plane;  // elements of one channel
  std::int64_t x_image, dy_image;  // elements of one image
  int step_q, step_p, step_n;      // a slab's depth in the digits (n, p, q)
  __host__ __device__ std::int64_t columns() const { return std::int64_t{c} * r * s; }
};

inline void set_steps(Weights& g, int depth) {
  g.step_q = depth % g.q;
  g.step_p = depth / g.q % g.p;
  g.step_n = depth / g.q / g.p;
}

inline Weights weights_of(const Conv2dSize& size) {
  const Conv2dOptions& o = size.options;
  extent((size.r - 1) * o.dilation.h);
  extent((size.s - 1) * o.dilation.w);
  const auto narrowed = [&](std::int64_t value) { return extent(value); };
  Weights g{};
  g.c = narrowed(size.channels_in_group());
  g.m = narrowed(size.filters_in_group());
  g.groups = narrowed(o.groups);
  g.h = narrowed(size.h);
  g.w = narrowed(size.w);
  g.r = narrowed(size.r);
  g.s = narrowed(size.s);
  g.p = narrowed(size.p);
  g.q = narrowed(size.q);
  g.h_stride = narrowed(o.stride.h);
  g.w_stride = narrowed(o.stride.w);
  g.h_padding = narrowed(o.padding.h);
  g.w_padding = narrowed(o.padding.w);
  g.h_dilation = narrowed(o.dilation.h);
  g.w_dilation = narrowed(o.dilation.w);
  g.pixels = size.n * size.p * size.q;
  g.x_plane = size.h * size.w;
  g.dy_plane = size.p * size.q;
  g.x_image = size.c * g.x_plane;
  g.dy_image = size.k * g.dy_plane;
  set_steps(g, tile_depth);
  return g;
}

// Whether a tap lies further from its window's origin than an int can say.
inline bool far(const Weights& g) {
  const std::int64_t last_tap = (g.c - 1) * g.x_plane + std::int64_t{g.r - 1} * g.h_dilation * g.w +
                                std::int64_t{g.s - 1} * g.w_dilation;
  return last_tap >= std::int64_t{1} << 31;
}

}  // namespace ebb::gpu::convolution
