#include <atomic>
#include <map>
#include <mutex>
#include <tuple>

#include "ebb/core/cuda.cuh"
#include "ebb/ops/elementwise/dropout.h"

namespace ebb {
namespace {

using gpu::Pack;

constexpr int quad = 4;                      // elements that a thread moves at once
constexpr int half = gpu::warp_size * quad;  // of a segment: one quad a lane
constexpr std::int64_t segment = 2 * half;

// One bit for each of a lane's eight elements: kept or not.
__device__ unsigned keep_bits(const Stream& stream, const DropThreshold& threshold,
                              std::uint64_t block) {
  const Philox random = philox(stream.seed, block, stream.now());
  unsigned keep = 0;
  unsigned ties = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const std::uint32_t draw = j % 2 == 0 ? random.v[j / 2] & 0xffff : random.v[j / 2] >> 16;
    keep |= unsigned{draw >= threshold.high} << j;
    ties |= unsigned{draw == threshold.high} << j;
  }
  if (ties != 0 && threshold.low > 0) {  // one block in 8192
    const Philox again = philox(stream.seed, block | std::uint64_t{1} << 63, stream.now());
    for (int j = 0; j < 8; ++j) {
      const std::uint32_t word = again.v[j / 2];
      const std::uint32_t draw = j % 2 == 0 ? word & 0xffff : word >> 16;
      if ((ties >> j & 1) != 0 && draw < threshold.low) keep &= ~(1u << j);
    }
  }
  return keep;
}

// A warp takes `segments` adjacent segments; lane l has quads l and 32 + l of each.
template <int threads, int segments, class T>
__global__ void __launch_bounds__(threads)
    dropout_kernel(Stream stream, DropThreshold threshold, std::int64_t n, bool packed, const T* x,
                   T* y) {
  using P = Pack<T, quad>;
  const auto scale = static_cast<gpu::Compute<T>>(threshold.scale);
  const auto value = [&](T e, unsigned bits, int j) {
    return gpu::narrow<T>((bits >> j & 1) != 0 ? gpu::widen(e) * scale : gpu::Compute<T>(0));
  };
  const int lane = threadIdx.x % gpu::warp_size;
  const std::int64_t warp =
      blockIdx.x * std::int64_t{threads / gpu::warp_size} + threadIdx.x / gpu::warp_size;
  const std::int64_t start = warp * segments * segment + lane * quad;
  const std::uint64_t block = static_cast<std::uint64_t>(warp * segments) * gpu::warp_size + lane;
  if (packed && (warp + 1) * segments * segment <= n) {
    P in[segments][2];
#pragma unroll
    for (int s = 0; s < segments; ++s)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        in[s][h] = *reinterpret_cast<const P*>(x + start + s * segment + h * half);
#pragma unroll
    for (int s = 0; s < segments; ++s) {
      const unsigned bits = keep_bits(stream, threshold, block + s * gpu::warp_size);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        P out;
#pragma unroll
        for (int j = 0; j < quad; ++j) out.v[j] = value(in[s][h].v[j], bits, h * quad + j);
        gpu::store(reinterpret_cast<P*>(y + start + s * segment + h * half), out);
      }
    }
    return;
  }
  for (int s = 0; s < segments; ++s) {
    if (start + s * segment >= n) return;
    const unsigned bits = keep_bits(stream, threshold, block + s * gpu::warp_size);
    for (int j = 0; j < 2 * quad; ++j) {
      const std::int64_t i = start + s * segment + j / quad * half + j % quad;
      if (i < n) y[i] = value(x[i], bits, j);
    }
  }
}

struct Call {
  Stream stream;
  DropThreshold threshold;
  std::int64_t n;
};

template <int threads, int segments, class T>
void start(const Call& call, const T* x, T* y) {
  constexpr std::int64_t tile = threads / gpu::warp_size * segments * segment;
  const auto aligned = [](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % sizeof(Pack<T, quad>) == 0;
  };
  gpu::launch("dropout", dropout_kernel<threads, segments, T>,
              dim3(static_cast<unsigned>(gpu::divide_up(call.n, tile))), threads, 0, call.stream,
              call.threshold, call.n, aligned(x) && aligned(y), x, y);
}

// The launches to choose from, the fixed one first.
template <class T>
using Start = void (*)(const Call&, const T*, T*);
template <class T>
constexpr Start<T> candidates[] = {start<256, 2, T>, start<256, 1, T>, start<256, 4, T>,
                                   start<128, 2, T>, start<512, 1, T>, start<512, 2, T>};

std::atomic<bool> tuning{true};
constexpr std::int64_t least_to_tune = 1 << 20;  // smaller ones take as long as a launch does

bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  gpu::check(cudaStreamIsCapturing(gpu::stream(), &status), "dropout");
  return status != cudaStreamCaptureStatusNone;
}

// Each candidate a few times on the call's own tensors, whose result they all write; the fastest.
template <class T>
int fastest(const Call& call, const T* x, T* y) {
  constexpr int repeats = 3;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  gpu::check(cudaEventCreate(&begin), "dropout");
  gpu::check(cudaEventCreate(&end), "dropout");
  int best = 0;
  float least = 0;
  for (int c = 0; c < static_cast<int>(std::size(candidates<T>)); ++c) {
    candidates<T>[c](call, x, y);  // the first run loads the kernel
    gpu::check(cudaEventRecord(begin, gpu::stream()), "dropout");
    for (int r = 0; r < repeats; ++r) candidates<T>[c](call, x, y);
    gpu::check(cudaEventRecord(end, gpu::stream()), "dropout");
    gpu::check(cudaEventSynchronize(end), "dropout");
    float time = 0;
    gpu::check(cudaEventElapsedTime(&time, begin, end), "dropout");
    if (c == 0 || time < least) {
      least = time;
      best = c;
    }
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

template <class T>
int choice(const Call& call, const T* x, T* y) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int>, int> chosen;  // by device and size class, for each T
  if (!tuning || call.n < least_to_tune) return 0;
  int device = 0;
  gpu::check(cudaGetDevice(&device), "dropout");
  const std::tuple key(device, std::bit_width(static_cast<std::uint64_t>(call.n)));
  const std::lock_guard lock(mutex);
  const auto known = chosen.find(key);
  if (known != chosen.end()) return known->second;
  if (x == y || capturing()) return 0;
  return chosen[key] = fastest(call, x, y);
}

}  // namespace

void gpu::tune_dropout(bool on) { tuning = on; }

void gpu::dropout(const Tensor& x, const Stream& stream, const DropThreshold& threshold,
                  Tensor& y) {
  visit<float, double, bf16>(x.dtype(), "dropout", [&](auto zero) {
    using T = decltype(zero);
    const Call call{stream, threshold, x.numel()};
    const T* in = x.data<T>();
    T* out = y.data<T>();
    candidates<T>[choice(call, in, out)](call, in, out);
  });
}

}  // namespace ebb
