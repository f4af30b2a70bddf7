// Pixels in lines: all rows of all images after each other, in chunks of 16 bytes of their
// channels, with so many zeros between rows and between images as taps reach beyond them. So a tap
// is a constant shift, and no pixel is asked whether it is inside.
#pragma once
#include "ebb/ops/convolution/chunks.cuh"

namespace ebb::gpu::convolution {

struct Line {
  std::int64_t images;
  int height, width;          // of an image and of a row on the line, zeros included
  std::int64_t before, size;  // the pixel at which it begins, how many it has
  int h_taps, w_taps, h_step, w_step;
  int first, reach;  // shifts of the first tap, and of the last that there is: 0 is the lowest
  __host__ __device__ std::int64_t points() const { return images * height * width; }
};

// A line of whole tiles of so many pixels, and the reach beyond, for taps in steps of one class.
inline Line line_of(const Gather& g, int tile) {
  struct Reach {
    int low, high, extent;
  };
  const auto along = [](const Side& side, const Axis& axis) {
    const int last = axis.first + (axis.taps - 1) * axis.step;
    const int low = std::min(axis.first, last), high = std::max(axis.first, last);
    const int end = (axis.points - 1) * axis.stride + high;
    return Reach{low, high,
                 std::max(side.in + std::max({0, -low, end + 1 - side.in}), axis.points)};
  };
  const Axis rows = axis_of(g.h, 0), cols = axis_of(g.w, 0);
  const Reach h = along(g.h, rows), w = along(g.w, cols);
  Line line{};
  line.images = g.images;
  line.height = h.extent;
  line.width = w.extent;
  line.h_taps = rows.taps;
  line.w_taps = cols.taps;
  line.h_step = rows.step * line.width;
  line.w_step = cols.step;
  const int low = h.low * line.width + w.low;
  line.before = low;
  line.first = rows.first * line.width + cols.first - low;
  line.reach = (h.high - h.low) * line.width + w.high - w.low;
  line.size = round_up(line.points(), tile) + std::max(line.reach, -low);
  return line;
}

// Some taps, as a block of a weight gradient has them, and what they reach on the line, from shift
// `low` on.
template <int together>
struct TapGroup {
  int shift[together], low, reach;
  __host__ __device__ TapGroup(const Line& line, int first) {
    int high = 0;
    for (int t = 0; t < together; ++t) {
      const int last = line.h_taps * line.w_taps - 1, tap = first + t < last ? first + t : last;
      shift[t] = line.first + tap / line.w_taps * line.h_step + tap % line.w_taps * line.w_step;
      low = t == 0 || shift[t] < low ? shift[t] : low;
      high = t == 0 || shift[t] > high ? shift[t] : high;
    }
    reach = high - low;
  }
};

// Whether its indices are int.
inline bool line_fits(const Gather& g) {
  const std::int64_t rows =
      g.h.in + g.h.padding + g.h.out + std::int64_t{g.h.kernel} * g.h.dilation;
  const std::int64_t cols =
      g.w.in + g.w.padding + g.w.out + std::int64_t{g.w.kernel} * g.w.dilation;
  constexpr std::int64_t most = std::int64_t{1} << 30;
  return rows < most / cols && g.images < most / (rows * cols) - 1;
}

// x [images, groups, channels, height, width] → [groups, chunks, line], zeros where there is no
// pixel; all high parts before all low ones. A block packs some pixels of one chunk.
template <class T, Form form>
struct LinePacker {
  Line line;
  int groups, channels, chunks, height, width;
  const T* x;
  Chunk<T>* packed;

  __host__ __device__ std::int64_t across() const {
    return divide_up<std::int64_t>(line.size, pack_threads);
  }
  __host__ __device__ std::int64_t blocks() const { return across() * groups * chunks; }

  __device__ void pack(std::int64_t index) const {
    BlockIndex block{index};
    const std::int64_t at = std::int64_t{block.next(across())} * pack_threads + threadIdx.x;
    const int chunk = block.next(chunks);
    if (at >= line.size) return;
    const std::int64_t j = at + line.before;
    const auto place = static_cast<unsigned>(j < 0 ? 0 : j),
               cols = static_cast<unsigned>(line.width);
    const unsigned row = place / cols, rows = static_cast<unsigned>(line.height);
    const unsigned w = place % cols, h = row % rows, image = row / rows;
    const bool inside = j >= 0 && image < line.images && h < height && w < width;
    const std::int64_t plane = std::int64_t{height} * width;
    const int first = chunk * pack_size<T>;
    const T* from = x + ((std::int64_t{image} * groups + block.left) * channels + first) * plane +
                    std::int64_t{h} * width + w;
    FormedChunk<T, form> out;
#pragma unroll
    for (int e = 0; e < pack_size<T>; ++e)
      if (inside && first + e < channels) out.set(e, from[e * plane]);
    out.store(packed + (block.left * chunks + chunk) * line.size + at,
              std::int64_t{groups} * chunks * line.size);
  }
};

// Two packers side by side, as neither fills the machine.
template <class A, class B>
__global__ void __launch_bounds__(pack_threads) pack_both(A a, B b) {
  if (blockIdx.x < a.blocks()) {
    a.pack(blockIdx.x);
  } else {
    b.pack(blockIdx.x - a.blocks());
  }
}
template <class A, class B>
void pack(const A& a, const B& b) {
  launch(op, pack_both<A, B>, grid_of(op, a.blocks() + b.blocks()), pack_threads, 0, a, b);
}

template <class T, Form form = Form::as_is>
Tensor empty_line(const Line& line, int groups, int chunks, const Tensor& x) {
  return empty({parts_of<form>, groups, chunks, line.size, pack_size<T>}, x.options());
}
template <class T, Form form>
LinePacker<T, form> line_packer(const Line& line, int groups, int channels, int chunks, int height,
                                int width, const Tensor& x, Tensor& packed) {
  return {line,   groups, channels,    chunks,
          height, width,  x.data<T>(), reinterpret_cast<Chunk<T>*>(packed.data<T>())};
}

}  // namespace ebb::gpu::convolution
