#include <atomic>
#include <map>
#include <mutex>
#include <tuple>

#include "ebb/core/cuda.cuh"
#include "ebb/core/graph.h"
#include "ebb/core/timer.h"
#include "ebb/ops/elementwise/dropout.h"

namespace ebb {
namespace {

using gpu::Pack;

constexpr int quad = 4;                      // elements that a thread moves at once
constexpr int half = gpu::warp_size * quad;  // of a segment: one quad a lane
constexpr std::int64_t segment = 2 * half;

// One bit for each of a lane's eight elements: kept or not.
__device__ unsigned keep_bits(std::uint64_t seed, std::uint64_t now, const DropThreshold& threshold,
                              std::uint64_t block) {
  const Philox random = philox(seed, block, now);
  unsigned keep = 0;
  unsigned ties = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const std::uint32_t draw = j % 2 == 0 ? random.v[j / 2] & 0xffff : random.v[j / 2] >> 16;
    keep |= unsigned{draw >= threshold.high} << j;
    ties |= unsigned{draw == threshold.high} << j;
  }
  if (ties != 0 && threshold.low > 0) {  // one block in 8192
    const Philox again = philox(seed, block | std::uint64_t{1} << 63, now);
    for (int j = 0; j < 8; ++j) {
      const std::uint32_t word = again.v[j / 2];
      const std::uint32_t draw = j % 2 == 0 ? word & 0xffff : word >> 16;
      if ((ties >> j & 1) != 0 && draw < threshold.low) keep &= ~(1u << j);
    }
  }
  return keep;
}

// Whether one of the eight draws ties with the threshold: a zero among the 16-bit halves of the
// differences.
__device__ bool has_tie(const Philox& random, std::uint32_t high) {
  std::uint32_t zero = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const std::uint32_t difference = random.v[w] ^ (high * 0x10001u);
    zero |= (difference - 0x10001u) & ~difference;
  }
  return (zero & 0x80008000u) != 0;
}

// A warp takes `segments` adjacent segments; lane l has quads l and 32 + l of each.
template <int threads, int segments, class T>
__global__ void __launch_bounds__(threads)
    dropout_kernel(Stream stream, DropThreshold threshold, std::int64_t n, const T* x, T* y) {
  using P = Pack<T, quad>;
  using C = gpu::Compute<T>;
  const auto scale = static_cast<C>(threshold.scale);
  const std::uint64_t now = stream.now();
  const int lane = threadIdx.x % gpu::warp_size;
  const std::int64_t warp =
      blockIdx.x * std::int64_t{threads / gpu::warp_size} + threadIdx.x / gpu::warp_size;
  const std::int64_t start = warp * segments * segment + lane * quad;
  const std::uint64_t block = static_cast<std::uint64_t>(warp * segments) * gpu::warp_size + lane;
  const auto one_by_one = [&](int s) {
    const unsigned bits = keep_bits(stream.seed, now, threshold, block + s * gpu::warp_size);
#pragma unroll 1
    for (int j = 0; j < 2 * quad; ++j) {
      const std::int64_t i = start + s * segment + j / quad * half + j % quad;
      if (i < n) y[i] = gpu::narrow<T>((bits >> j & 1) != 0 ? gpu::widen(x[i]) * scale : C(0));
    }
  };
  if ((warp + 1) * segments * segment > n) {
    for (int s = 0; s < segments && start + s * segment < n; ++s) one_by_one(s);
    return;
  }
  P in[segments][2];
#pragma unroll
  for (int s = 0; s < segments; ++s)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      in[s][h] = *reinterpret_cast<const P*>(x + start + s * segment + h * half);
#pragma unroll
  for (int s = 0; s < segments; ++s) {
    const Philox random = philox(stream.seed, block + s * gpu::warp_size, now);
    if (threshold.low > 0 && has_tie(random, threshold.high)) {  // one block in 8192
      one_by_one(s);
      continue;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      P out;
#pragma unroll
      for (int j = 0; j < quad; j += 2) {
        const std::uint32_t draws = random.v[h * 2 + j / 2];
        const bool kept[] = {draws << 16 >= threshold.high << 16, draws >= threshold.high << 16};
#pragma unroll
        for (int k = 0; k < 2; ++k)
          out.v[j + k] = gpu::narrow<T>(kept[k] ? gpu::widen(in[s][h].v[j + k]) * scale : C(0));
      }
      gpu::store(reinterpret_cast<P*>(y + start + s * segment + h * half), out);
    }
  }
}

struct Call {
  Stream stream;
  DropThreshold threshold;
  std::int64_t n;
  Device device;
};

template <int threads, int segments, class T>
void start(const Call& call, const T* x, T* y) {
  constexpr std::int64_t tile = threads / gpu::warp_size * segments * segment;
  gpu::launch("dropout", dropout_kernel<threads, segments, T>,
              dim3(static_cast<unsigned>(gpu::divide_up(call.n, tile))), threads, 0, call.stream,
              call.threshold, call.n, x, y);
}

// The launches to choose from, the fixed one first.
template <class T>
using Start = void (*)(const Call&, const T*, T*);
template <class T>
constexpr Start<T> candidates[] = {start<256, 2, T>, start<256, 1, T>, start<256, 4, T>,
                                   start<128, 2, T>, start<512, 1, T>, start<512, 2, T>};

std::atomic<bool> tuning{true};
constexpr std::int64_t least_to_tune = 1 << 20;  // smaller ones take as long as a launch does

// Each candidate a few times on the call's own tensors, whose result they all write; the fastest.
template <class T>
int fastest(const Call& call, const T* x, T* y) {
  constexpr int repeats = 3;
  Timer timer(call.device);
  int best = 0;
  double least = 0;
  for (int c = 0; c < static_cast<int>(std::size(candidates<T>)); ++c) {
    candidates<T>[c](call, x, y);  // the first run loads the kernel
    timer.start();
    for (int r = 0; r < repeats; ++r) candidates<T>[c](call, x, y);
    timer.stop();
    const double seconds = timer.seconds();
    if (c == 0 || seconds < least) {
      least = seconds;
      best = c;
    }
  }
  return best;
}

template <class T>
int choice(const Call& call, const T* x, T* y) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int>, int> chosen;  // by device and size class, for each T
  if (!tuning || call.n < least_to_tune) return 0;
  const std::tuple key(call.device.index, std::bit_width(static_cast<std::uint64_t>(call.n)));
  const std::lock_guard lock(mutex);
  const auto known = chosen.find(key);
  if (known != chosen.end()) return known->second;
  if (x == y || gpu::capturing()) return 0;
  return chosen[key] = fastest(call, x, y);
}

}  // namespace

void gpu::tune_dropout(bool on) { tuning = on; }

void gpu::dropout(const Tensor& x, const Stream& stream, const DropThreshold& threshold,
                  Tensor& y) {
  if (threshold.high > 0xffff) {  // no draw of 16 bits is kept
    y.fill_(0);
    return;
  }
  visit<float, double, bf16>(x.dtype(), "dropout", [&](auto zero) {
    using T = decltype(zero);
    const Call call{stream, threshold, x.numel(), x.device()};
    const T* in = x.data<T>();
    T* out = y.data<T>();
    candidates<T>[choice(call, in, out)](call, in, out);
  });
}

}  // namespace ebb
