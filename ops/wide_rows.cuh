// Sums over the channels of [samples, channels, plane] on the GPU where samples or planes are not
// whole packs: `together` samples are a row that is, of whose columns a channel has some here and
// there. The sums of columns.cuh go over such rows by these:
//
//   const WideRows w = wide_rows<T>(samples, channels, plane);       w.rows is 0: not so
//   columns<T, 2>(op, WideTerms<Terms>{terms, w}, WideFinish<Finish>{finish, w}, …);
#pragma once
#include "ebb/ops/channel_map.cuh"
#include "ebb/ops/columns.cuh"

namespace ebb::gpu {

struct WideRows {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  unsigned channels = 1;
  unsigned plane = 1;
  unsigned of_channel = 1;  // columns
  ChannelOf of{};
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
          {Divider(plane), Divider(channels)}};
}

template <class Terms>
struct WideTerms {
  Terms terms;
  WideRows rows;
  using Column = decltype(std::declval<const Terms&>().column(0));
  template <int width>
  __device__ void columns(std::int64_t column, Column (&own)[width]) const {
    rows.of.each(column, own, [&](std::int64_t c) { return terms.column(c); });
  }
};
// finish(channel, sums) of all its columns in all slices, a block each.
template <class Finish>
__global__ void __launch_bounds__(part_threads)
    add_wide_kernel(Finish finish, WideRows s, unsigned slices, const double* partial) {
  await_previous();
  double sum[2] = {};
  for (unsigned i = threadIdx.x; i < slices * s.of_channel; i += part_threads) {
    const unsigned slice = i / s.of_channel;
    const unsigned own = i % s.of_channel;
    const unsigned sample = own / s.plane;
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
