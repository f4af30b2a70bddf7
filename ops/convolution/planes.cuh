// What planes_convolve.cu and planes_weights.cu have in common: tiles of places, rows of some
// planes in shared memory with zeros around and between their pixels.
#pragma once
#include "ebb/ops/convolution/geometry.cuh"
#include "ebb/ops/divider.cuh"

namespace ebb::gpu::convolution {

using Divider32 = WordDivider<std::uint32_t>;

// One spatial axis: point j sees at tap t the place j·step + t·dilation + first, and place p is
// pixel p / apart, where that divides it.
struct Window {
  int in, out, taps;
  int step, dilation, first, apart;
};

// How rows of planes lie in shared memory: the places of a row in `step` phases, so that those that
// adjacent points see at one tap are adjacent.
struct Field {
  int height, width;          // of a plane
  int h_apart, w_apart;       // places between pixels
  int rows, cols, step;       // places of a tile
  int phase, pitch;           // numbers of a phase and of a row
  int some_rows, some_packs;  // at most, of pixels in a tile
  Divider32 by_step, by_rows, by_packs;
  __host__ __device__ std::int64_t size() const { return std::int64_t{rows} * pitch; }
};

struct Planes {
  Window h, w;
  int groups, m, c;
  bool turned;
  std::int64_t m_stride, c_stride;  // of the weights
  std::int64_t images;
  int rows, packs, deep;    // of a tile: of points, four a pack; and planes of points
  int bands, strips;        // tiles down and across a plane
  int classes, class_taps;  // taps t, t + classes, … share a phase; so many places for them
  Field in, out;            // `out` is dy's, for the weight gradient
  Divider32 by_packs, by_rows, by_strips, by_bands, by_m;
  __host__ __device__ std::int64_t channels() const { return std::int64_t{groups} * m; }
  __host__ __device__ std::int64_t places() const { return deep * c * in.size(); }
  __host__ __device__ int taps() const { return c * h.taps * classes * class_taps; }
  // Places of a tile: its rows, what taps reach across, and those of one phase of a row.
  std::int64_t place_rows() const {
    return std::int64_t{rows - 1} * h.step + std::int64_t{h.taps - 1} * h.dilation + 1;
  }
  std::int64_t reach() const { return std::int64_t{w.taps - 1} * w.dilation; }
  std::int64_t phase() const {
    return round_up(4 * packs + std::max<std::int64_t>(class_taps, reach() / w.step), 4);
  }
  // Of class z.
  __device__ int taps_of(int z) const {
    const int most = divide_up(w.taps, classes);
    return most - (z >= w.taps - (most - 1) * classes);
  }
  // Whether the taps of a class see adjacent places.
  __host__ __device__ bool adjacent() const { return w.dilation == 1 || w.dilation == w.step; }
};

// Fills a tile that begins at place (row, col) with `planes` planes, from + at[q] each, if that is
// not negative; `width` pixels are read at once. Plain places are pixels, in one phase.
template <int width, bool plain, class T>
__device__ void stage_planes(const Field& f, int row, int col, int planes, const std::int64_t* at,
                             const T* from, Compute<T>* tile) {
  constexpr int each = 4;
  const auto first_of = [](int place, int apart) {
    return place <= 0 ? 0 : apart == 1 ? place : divide_up(place, apart);
  };
  const int h_first = first_of(row, f.h_apart), w_first = first_of(col, f.w_apart);
  const int h_end = min(f.height, first_of(row + f.rows, f.h_apart));
  const int w_end = min(f.width, first_of(col + f.cols, f.w_apart));
  const int count = planes * f.some_rows * f.some_packs;
  for (int first = threadIdx.x; first < count; first += each * static_cast<int>(blockDim.x)) {
    Pack<T, width> held[each];
    int to[each], w[each];
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int i = first + k * static_cast<int>(blockDim.x);
      const int line = f.by_packs.quotient(i), q = f.by_rows.quotient(line);
      const int h = h_first + line - q * f.some_rows;
      w[k] = w_first / width * width + (i - line * f.some_packs) * width;
      const std::int64_t plane = i < count && h < h_end && w[k] < w_end ? at[q] : -1;
      to[k] =
          plane < 0 ? outside : (q * f.rows + h * f.h_apart - row) * f.pitch - (plain ? col : 0);
      if (plane >= 0)
        held[k] = *reinterpret_cast<const Pack<T, width>*>(from + plane +
                                                           (std::int64_t{h} * f.width + w[k]));
    }
#pragma unroll
    for (int k = 0; k < each; ++k)
#pragma unroll
      for (int e = 0; e < width; ++e) {
        const int pixel = w[k] + e;
        if (to[k] == outside || pixel < w_first || pixel >= w_end) continue;
        int place = pixel;
        if constexpr (!plain) {
          place = pixel * f.w_apart - col;
          const int index = f.by_step.quotient(place);
          place = (place - index * f.step) * f.phase + index;
        }
        tile[to[k] + place] = widen(held[k].v[e]);
      }
  }
}

template <class V>
__device__ void clear(V* tile, std::int64_t size) {
  for (int i = threadIdx.x * 4; i < size; i += blockDim.x * 4)
    *reinterpret_cast<Pack<V, 4>*>(tile + i) = {};
}

template <class V>
__device__ Pack<V, 4> four(const V* from) {
  return *reinterpret_cast<const Pack<V, 4>*>(from);
}

// Launchers.

inline Field field(const Window& h, const Window& w, std::int64_t rows, std::int64_t cols, int step,
                   std::int64_t phase, int width) {
  const int some_rows = std::min<int>(h.in, divide_up<std::int64_t>(rows, h.apart));
  const std::int64_t pixels = divide_up<std::int64_t>(cols, w.apart) + width - 1;
  const int some_packs = divide_up<int>(std::min<std::int64_t>(w.in, pixels), width);
  return {h.in,
          w.in,
          h.apart,
          w.apart,
          static_cast<int>(rows),
          static_cast<int>(cols),
          step,
          static_cast<int>(phase),
          static_cast<int>(step * phase),
          some_rows,
          some_packs,
          Divider32(step),
          Divider32(some_rows),
          Divider32(some_packs)};
}

// Windows and channels, without tiles.
inline Planes planes_of(const Conv2dSize& size, bool transposed) {
  const Gather g = gather_of(size, transposed);
  const auto window = [&](const Side& s) {
    const int reach = (s.kernel - 1) * s.dilation;
    return transposed ? Window{s.in, s.out, s.kernel, 1, s.dilation, s.padding - reach, s.stride}
                      : Window{s.in, s.out, s.kernel, s.stride, s.dilation, -s.padding, 1};
  };
  Planes p{};
  p.h = window(g.h);
  p.w = window(g.w);
  p.groups = g.groups;
  p.m = g.m;
  p.c = g.c;
  p.turned = transposed;
  p.m_stride = g.m_stride;
  p.c_stride = g.c_stride;
  p.images = g.images;
  p.classes = std::min(p.w.step / std::gcd(p.w.step, p.w.dilation), p.w.taps);
  p.class_taps = static_cast<int>(round_up(divide_up(p.w.taps, p.classes), 4));
  return p;
}

// Shared memory of tiles of so many rows, packs and planes.
inline std::int64_t plane_bytes(const Planes& p, bool gradient, std::int64_t each) {
  const std::int64_t numbers = p.c * p.place_rows() * p.w.step * p.phase() +
                               (gradient ? std::int64_t{4} * p.rows * p.packs : p.taps());
  return p.deep * (numbers * each + 8 * (p.c + 1));
}

// Tiles of about `points` packs of points, for `planes` planes. Whether they fit.
inline bool set_tiles(Planes& p, std::int64_t planes, bool gradient, std::int64_t each, int width) {
  constexpr int points = 1024, across = 128;
  constexpr std::int64_t memory = 48 * 1024;
  const int all = divide_up(p.w.out, 4);
  p.packs = divide_up(all, divide_up(all, across));
  p.rows = std::clamp(points / p.packs, 1, p.h.out);
  p.rows = divide_up(p.h.out, divide_up(p.h.out, p.rows));
  p.deep = static_cast<int>(std::clamp<std::int64_t>(points / (p.rows * p.packs), 1, planes));
  while (plane_bytes(p, gradient, each) > memory) {
    int& larger = p.deep > 1 ? p.deep : p.rows > 1 ? p.rows : p.packs;
    if (larger <= 1) return false;
    larger = divide_up(larger, 2);
  }
  p.bands = divide_up(p.h.out, p.rows);
  p.strips = divide_up(all, p.packs);
  p.by_packs = Divider32(p.packs);
  p.by_rows = Divider32(p.rows);
  p.by_strips = Divider32(p.strips);
  p.by_bands = Divider32(p.bands);
  p.by_m = Divider32(p.m);
  p.in = field(p.h, p.w, p.place_rows(), (std::int64_t{4} * p.packs - 1) * p.w.step + p.reach() + 1,
               p.w.step, p.phase(), width);
  const auto whole = [](const Window& w) { return Window{w.out, w.out, 1, 1, 1, 0, 1}; };
  p.out = field(whole(p.h), whole(p.w), p.rows, 4 * p.packs, 1, 4 * p.packs, width);
  return true;
}

// f(constant, constant) with how many pixels are read at once, and whether places are pixels.
template <class F>
void with_width(const Planes& p, int width, F f) {
  const auto with_plain = [&](auto pixels) {
    if (p.w.step == 1 && p.w.apart == 1) {
      f(pixels, std::true_type{});
    } else {
      f(pixels, std::false_type{});
    }
  };
  if (width == 2) {
    with_plain(std::integral_constant<int, 2>{});
  } else {
    with_plain(std::integral_constant<int, 1>{});
  }
}

}  // namespace ebb::gpu::convolution
