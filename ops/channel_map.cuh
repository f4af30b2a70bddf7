// y = channel(x…) of [samples, channels, plane] on the GPU: a map that knows a channel's constants.
// Batch norm; and layer norm of few long rows, which are the channels of one sample.
//
//   struct Body {
//     struct Channel { __device__ C operator()(C x, …) const … };
//     __device__ Channel channel(int64 c) const …
//   };
//   channel_map<T, shared>(op, body, samples, channels, plane, y, x…);
//
// The last `shared` of x are [plane]: a weight, a bias; 0 where such a pointer is null.
//
// The tensor is one row of packs, whatever channels they belong to. Those of a thread lie whole
// samples apart, so that it finds the constants of its elements once.
#pragma once
#include <algorithm>
#include <numeric>

#include "ebb/ops/divider.cuh"
#include "ebb/ops/map.cuh"
#include "ebb/ops/packs.cuh"
#include "ebb/ops/parts.cuh"

namespace ebb::gpu {

inline constexpr int map_packs = 4;  // of a thread

// Where the elements of [samples, channels, plane] are.
struct ChannelOf {
  Divider plane;
  Divider channels;

  __device__ std::int64_t channel(std::int64_t element) const {
    return static_cast<std::int64_t>(channels.remainder(plane.quotient(element)));
  }
  // own[j] = f(channel of element + j)
  template <class Own, int width, class F>
  __device__ void each(std::int64_t element, Own (&own)[width], const F& f) const {
    if (plane.d < width) {
#pragma unroll
      for (int j = 0; j < width; ++j) own[j] = f(channel(element + j));
      return;
    }
    const auto left = plane.d - plane.remainder(element);
    const Own first = f(channel(element));
    const Own last = f(channel(element + width - 1));
#pragma unroll
    for (int j = 0; j < width; ++j) own[j] = j < left ? first : last;
  }
};

struct ChannelPacks {
  ChannelOf of;
  std::int64_t elements;
  std::int64_t packs;
  std::int64_t step = 0;   // packs from one of a thread's to the next
  std::int64_t tiles = 0;  // blocks of a step
};

// Backwards, so that what a sum of the same tensor has read last is still in the cache.
template <class T, int shared, int width, class Body, class... X>
__global__ void __launch_bounds__(map_threads)
    channel_map_kernel(Body body, ChannelPacks s, T* y, const X*... x) {
  await_previous();
  constexpr int inputs = sizeof...(X);
  const T* const from[] = {x...};
  const std::int64_t block = gridDim.x - 1 - blockIdx.x;
  if constexpr (shared == 0)
    if (const std::int64_t last = s.packs * width + threadIdx.x; block == 0 && last < s.elements)
      y[last] = narrow<T>(body.channel(s.of.channel(last))(widen(x[last])...));
  const std::int64_t round = block / s.tiles;
  const std::int64_t column = (block - round * s.tiles) * map_threads + threadIdx.x;
  const std::int64_t first = round * map_packs * s.step + column;
  if (column >= s.step || first >= s.packs) return;
  Pack<T, width> in[map_packs][inputs];
#pragma unroll
  for (int u = 0; u < map_packs; ++u) {
    const std::int64_t pack = first + u * s.step;
#pragma unroll
    for (int q = 0; q < inputs; ++q) {
      const bool there = pack < s.packs && (q < inputs - shared || from[q]);
      const std::int64_t place = pack * width;
      in[u][q] = load_if<width>(
          there, from[q] + (q < inputs - shared ? place : s.of.plane.remainder(place)));
    }
  }
  decltype(body.channel(0)) own[width];
  s.of.each(first * width, own, [&](std::int64_t c) { return body.channel(c); });
#pragma unroll
  for (int u = 0; u < map_packs; ++u) {
    const std::int64_t pack = first + u * s.step;
    if (pack >= s.packs) return;
    Compute<T> out[width];
#pragma unroll
    for (int j = 0; j < width; ++j)
      out[j] = of_packs(own[j], in[u], j, std::make_index_sequence<inputs>{});
    store_words(y + pack * width, narrow<T>(out));
  }
}

// go<width>() with packs that n elements are whole packs of.
template <class T, class Go>
void with_width(std::int64_t n, const Go& go) {
  constexpr int width = pack_size<T>;
  if (n % width == 0) return go.template operator()<width>();
  if constexpr (sizeof(T) == 2)
    if (n % (width / 2) == 0) return go.template operator()<width / 2>();
  go.template operator()<1>();
}

template <class T, int shared, class Body, class... X>
void channel_map(std::string_view op, const Body& body, std::int64_t samples, std::int64_t channels,
                 std::int64_t plane, T* y, const X*... x) {
  constexpr std::int64_t shortest = 2048;  // step, of which the last block may have little
  const std::int64_t sample = channels * plane;
  const std::int64_t n = samples * sample;
  if (n == 0) return;
  const auto go = [&]<int width>() {
    ChannelPacks s{{Divider(plane), Divider(channels)}, n, n / width};
    s.step = sample / std::gcd(sample, std::int64_t{width});
    s.step *= divide_up(shortest, s.step);
    s.tiles = divide_up<std::int64_t>(std::clamp<std::int64_t>(s.packs, 1, s.step), map_threads);
    const std::int64_t rounds = divide_up<std::int64_t>(s.packs, map_packs * s.step);
    launch_next(op, channel_map_kernel<T, shared, width, Body, X...>,
                dim3(static_cast<unsigned>(s.tiles * std::max<std::int64_t>(rounds, 1))),
                map_threads, body, s, y, x...);
  };
  with_width<T>(shared == 0 ? pack_size<T> : plane, go);
}

}  // namespace ebb::gpu
