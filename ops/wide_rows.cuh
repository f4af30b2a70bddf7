// [samples, channels, plane] on the GPU as rows of whole packs, where samples or planes are not:
// `together` samples are one row, of whose columns a channel has some here and there. The engines
// of columns.cuh go over such rows by these:
//
//   const WideRows w = wide_rows<T>(samples, channels, plane);       w.rows is 0: not so
//   columns<T, 2>(op, WideTerms<Terms>{terms, w}, WideFinish<Finish>{finish, w}, …);
//   column_map<T>(op, WideMap<Body>{body, w}, w.rows, w.columns, y, x…);
#pragma once
#include "ebb/ops/columns.cuh"
#include "ebb/ops/divider.cuh"

namespace ebb::gpu {

struct WideRows {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  unsigned channels = 1;
  unsigned plane = 1;
  unsigned of_channel = 1;  // columns
  WordDivider<unsigned> by_plane{};
  WordDivider<unsigned> by_channels{};
  WordDivider<unsigned> by_own{};

  __device__ unsigned channel(std::int64_t column) const {
    return by_channels.remainder(by_plane.quotient(static_cast<unsigned>(column)));
  }
  // own[j] = f(channel of column + j)
  template <class Own, int width, class F>
  __device__ void each_channel(std::int64_t column, Own (&own)[width], const F& f) const {
    if (plane < width) {
#pragma unroll
      for (int j = 0; j < width; ++j) own[j] = f(channel(column + j));
      return;
    }
    const unsigned left = plane - by_plane.remainder(static_cast<unsigned>(column));
    const Own first = f(channel(column));
    const Own last = f(channel(column + width - 1));
#pragma unroll
    for (int j = 0; j < width; ++j) own[j] = j < left ? first : last;
  }
};

template <class T>
WideRows wide_rows(std::int64_t samples, std::int64_t channels, std::int64_t plane) {
  constexpr std::int64_t pack = pack_size<T>;
  constexpr std::int64_t fewest = 32;            // rows
  constexpr std::int64_t narrowest = 16 * pack;  // row
  constexpr std::int64_t widest = std::int64_t{1} << 21;
  const std::int64_t sample = channels * plane;
  const bool whole = sample % pack == 0 && (plane == 1 || plane % pack == 0);
  if (whole || samples * sample == 0) return {};
  std::int64_t together = 1;
  const auto row = [&] { return sample * together; };
  while ((row() % pack != 0 || row() < narrowest) && samples % (2 * together) == 0) together *= 2;
  if (row() % pack != 0 || samples / together < fewest || row() > widest) return {};
  return {samples / together,
          row(),
          static_cast<unsigned>(channels),
          static_cast<unsigned>(plane),
          static_cast<unsigned>(together * plane),
          WordDivider<unsigned>(plane),
          WordDivider<unsigned>(channels),
          WordDivider<unsigned>(together * plane)};
}

template <class Terms>
struct WideTerms {
  Terms terms;
  WideRows rows;
  using Column = decltype(std::declval<const Terms&>().column(0));
  template <int width>
  __device__ void columns(std::int64_t column, Column (&own)[width]) const {
    rows.each_channel(column, own, [&](std::int64_t c) { return terms.column(c); });
  }
};
template <class Body>
struct WideMap {
  Body body;
  WideRows rows;
  using Channel = decltype(std::declval<const Body&>().channel(0));
  __device__ Channel channel(std::int64_t column) const {
    return body.channel(rows.channel(column));
  }
  template <int width>
  __device__ void channels(std::int64_t column, Channel (&own)[width]) const {
    rows.each_channel(column, own, [&](std::int64_t c) { return body.channel(c); });
  }
};

// finish(channel, sums) of all its columns in all slices, a block each.
template <class Finish>
__global__ void __launch_bounds__(part_threads)
    add_wide_kernel(Finish finish, WideRows s, unsigned slices, const double* partial) {
  await_previous();
  double sum[2] = {};
  for (unsigned i = threadIdx.x; i < slices * s.of_channel; i += part_threads) {
    const unsigned slice = s.by_own.quotient(i);
    const unsigned own = i - slice * s.of_channel;
    const unsigned sample = s.by_plane.quotient(own);
    const std::int64_t column =
        std::int64_t{sample * (s.channels - 1) + blockIdx.x} * s.plane + own;
#pragma unroll
    for (int q = 0; q < 2; ++q) sum[q] += partial[(slice * 2 + q) * s.columns + column];
  }
#pragma unroll
  for (int q = 0; q < 2; ++q) sum[q] = block_reduce<part_threads>(sum[q], Sum{});
  if (threadIdx.x == 0) finish(blockIdx.x, sum);
}

template <class Finish>
struct WideFinish {
  Finish finish;
  WideRows rows;
  void add(std::string_view op, std::int64_t slices, const double* partial) const {
    launch_next(op, add_wide_kernel<Finish>, dim3(rows.channels), part_threads, finish, rows,
                static_cast<unsigned>(slices), partial);
  }
};

}  // namespace ebb::gpu
