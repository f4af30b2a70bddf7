// [samples, channels, plane] on the GPU, read once, where channels are small: one block has all of
// a channel in registers, between its sums and its map. Blocks of a multiprocessor load while
// others add up or write, and nobody waits for another block.
//
//   if (hold_alone<T, count>(op, body, samples, channels, plane, y, x…)) return;      as held.cuh
//
// How a sum is ordered depends on the shape alone.
#pragma once
#include "ebb/ops/channels.cuh"

namespace ebb::gpu {

// `data`: registers of a thread that hold x.
template <int threads_, int data_>
struct Alone {
  static constexpr int threads = threads_;
  static constexpr int data = data_;
  static constexpr int blocks = 65536 / threads / (data <= 32 ? 72 : 128);  // of a multiprocessor
  template <class T, int inputs, int width>
  static constexpr int packs = data / (inputs * ((width * static_cast<int>(sizeof(T)) + 3) / 4));
};

// Over a block; every thread gets the sums.
template <int threads, int count>
__device__ void add_threads(double (&sum)[count]) {
  constexpr int warps = threads / warp_size;
  __shared__ double of_warps[count][warps];
#pragma unroll
  for (int q = 0; q < count; ++q) {
    sum[q] = warp_reduce(sum[q], Sum{});
    if (threadIdx.x % warp_size == 0) of_warps[q][threadIdx.x / warp_size] = sum[q];
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < count; ++q) {
    sum[q] = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum[q] += of_warps[q][w];
  }
}

template <class T, int count, int width, bool ragged, class How, class Body, class... X>
__global__ void __launch_bounds__(How::threads, How::blocks)
    alone_kernel(const Body body, const ChannelSlices s, T* y, const X*... x) {
  constexpr int inputs = sizeof...(X);
  const T* const from[] = {x...};
  const std::int64_t c = blockIdx.x;
  ChannelWalk<How::threads> start(s, width, c, 0);
  ChannelWindow<T, inputs, How::template packs<T, inputs, width>, width, ragged> window;
  window.rounds = static_cast<int>(divide_up<std::int64_t>(s.chunk, How::threads));
  auto walk = start;
  window.template load<0>(walk, from);
  const auto own = body.column(c);
  const auto known = body.known(c);
  double sum[count] = {};
  if (window.size() > 0) own.add(window, sum);
  add_threads<How::threads>(sum);
  if (threadIdx.x == How::threads - 1) body.keep(c, known, sum);
  const auto channel = body.channel(known, sum);
  start.forget();
  window.map(start, y, [&](int, auto... v) { return channel(v...); });
}

// go<width, ragged>() for planes of whole packs, for planes that share packs, or, where they are
// small or packs would reach beyond the tensor, by elements; bf16 by four.
template <class T, class Go>
void with_packs(std::int64_t samples, std::int64_t channels, std::int64_t plane, const Go& go) {
  constexpr int width = pack_size<T>;
  constexpr std::int64_t shortest = 16 * width;  // plane that is worth the masks
  const std::int64_t n = samples * channels * plane;
  if (n % width == 0 && plane % width == 0) return go.template operator()<width, false>();
  if (n % width == 0 && plane >= shortest) return go.template operator()<width, true>();
  if constexpr (sizeof(T) == 2) {
    if (n % 4 == 0 && plane % 4 == 0) return go.template operator()<4, false>();
    if (n % 4 == 0 && plane > 4) return go.template operator()<4, true>();
  }
  go.template operator()<1, false>();
}

template <class T, int count, class Body, class... X>
bool hold_alone(std::string_view op, const Body& body, std::int64_t samples, std::int64_t channels,
                std::int64_t plane, T* y, const X*... x) {
  constexpr std::int64_t many = 768;  // channels, that fill a GPU some times
  bool done = false;
  if constexpr (sizeof(T) <= 4)
    with_packs<T>(samples, channels, plane, [&]<int width, bool ragged>() {
      const std::int64_t packs = packs_of_plane(plane, width);
      const ChannelSlices s{samples, channels, plane, packs, 1, samples * packs};
      const auto go = [&]<class How>(How) {
        constexpr int most = How::template packs<T, sizeof...(X), width>;
        if (done || s.chunk > std::int64_t{most} * How::threads) return;
        launch(op, alone_kernel<T, count, width, ragged, How, Body, X...>,
               dim3(static_cast<unsigned>(channels)), How::threads, 0, body, s, y, x...);
        done = true;
      };
      go(Alone<32, 16>{});
      go(Alone<128, 16>{});
      go(Alone<128, 32>{});
      go(Alone<448, 32>{});
      if (width == pack_size<T> ? channels >= many : sizeof(T) == 4) go(Alone<512, 64>{});
    });
  return done;
}

}  // namespace ebb::gpu
