// Windows of many elements that hardly overlap, a whole image say: a group of 8 or 32 threads, or a
// block, has an output, and each of its threads every so many rows and columns of the window.
#pragma once
#include "ebb/ops/pooling/places.cuh"

namespace ebb::gpu {

inline bool is_wide(const PoolSize& s) {
  const std::int64_t elements = std::min(s.kernel_h, s.h) * std::min(s.kernel_w, s.w);
  return is_few(s) && elements >= 32 && s.dilation_h == 1 && s.dilation_w == 1 &&
         s.p * s.q * elements <= 2 * s.h * s.w;
}

struct Wide {
  FewPlaces outputs;
  int across;  // threads side by side in a row, a power of two

  explicit Wide(const PoolSize& s) : outputs(s.planes, s.p, s.q), across(1) {
    while (across < std::min(s.kernel_w, s.w)) across *= 2;
  }
  dim3 blocks(int group) const { return outputs.blocks(pool_threads / group); }

  template <int group>
  __device__ Place<int> place() const {
    return outputs[blockIdx.x * (pool_threads / group) + threadIdx.x / group];
  }
  template <int group>
  __device__ bool leader() const {
    return threadIdx.x % group == 0;
  }
  // f(h, w) for what this thread has of rows [h0, h1) and columns [w0, w1).
  template <int group, class F>
  __device__ void each(int h0, int h1, int w0, int w1, const F& f) const {
    const int lanes = across < group ? across : group;
    const int lane = threadIdx.x % group, down = lane / lanes, right = lane % lanes;
    for (int w = w0 + right; w < w1; w += lanes)
#pragma unroll 8
      for (int h = h0 + down; h < h1; h += group / lanes) f(h, w);
  }
};

// Over a group's threads; the first one gets the result.
template <int group, class T, class Op>
__device__ T group_reduce(T x, Op op) {
  if constexpr (group <= warp_size) return warp_reduce<group>(x, op);
  return block_reduce<group>(x, op);
}

template <class F>
void visit_groups(const PoolSize& s, const F& f) {
  const std::int64_t elements = std::min(s.kernel_h, s.h) * std::min(s.kernel_w, s.w);
  if (elements < 256) return f.template operator()<8>();
  if (elements < 4096) return f.template operator()<32>();
  f.template operator()<pool_threads>();
}

}  // namespace ebb::gpu
