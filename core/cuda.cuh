// What every kernel file shares: the stream, checked calls, launch, arithmetic types, reductions.
// No Eigen here, and no --use_fast_math: intrinsics are chosen site by site.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "ebb/core/dtype.h"
#include "ebb/core/error.h"

namespace ebb::gpu {

// The stream of this thread's current device that all work is queued on.
cudaStream_t stream();

// Error `cuda`, naming the op, unless status is success.
void check(cudaError_t status, std::string_view op);

// Of the current device.
int multiprocessors();
int block_memory();        // the most shared memory that a block may have, in bytes
int compute_capability();  // as 90

// For core/occupancy.h: does nothing unless kernels_of() is watching this thread.
void note_launch(std::string_view op, const void* kernel, int threads, size_t shared);

// Queues a kernel; an empty grid queues nothing. `shared` is dynamic shared memory in bytes.
template <class... P, class... A>
void launch(std::string_view op, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
            const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t free_of_charge = 48 * 1024;  // more must be asked for
  if (shared > free_of_charge) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          op);
  }
  note_launch(op, reinterpret_cast<const void*>(kernel),
              static_cast<int>(block.x * block.y * block.z), shared);
  kernel<<<grid, block, shared, stream()>>>(static_cast<P>(arguments)...);
  check(cudaGetLastError(), op);
}

template <class Int>
constexpr Int divide_up(Int n, Int d) {
  return (n + d - 1) / d;
}

// The type arithmetic is done in: bf16 is storage only.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

template <class T>
__device__ inline T narrow(Compute<T> x) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 y;
    y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return y;
  } else {
    return x;
  }
}

// An unsigned integer of that many bytes, 1 to 16.
template <int bytes>
using Word = std::tuple_element_t<
    std::bit_width(unsigned{bytes}) - 1,
    std::tuple<std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t, unsigned __int128>>;

// N adjacent elements, moved by one instruction when they fill 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// *to = pack, by one instruction for each 16 bytes. Left to itself, the compiler may store elements
// that it has just computed one by one; a word it cannot take apart.
template <class T, int N>
__device__ void store(Pack<T, N>* to, const Pack<T, N>& pack) {
  constexpr int each = sizeof(T);
  constexpr int bytes = each * N < 16 ? each * N : 16;
#pragma unroll
  for (int w = 0; w < each * N / bytes; ++w) {
    Word<bytes> word = 0;
#pragma unroll
    for (int i = 0; i < bytes / each; ++i) {
      const auto bits = __builtin_bit_cast(Word<each>, pack.v[w * (bytes / each) + i]);
      word |= static_cast<Word<bytes>>(bits) << (8 * each * i);
    }
    reinterpret_cast<Word<bytes>*>(to)[w] = word;
  }
}

// How many T make 16 bytes.
template <class T>
inline constexpr int pack_size = 16 / sizeof(T);

// 2^x with a relative error of 2⁻²²; 0 below 2⁻¹²⁶.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline constexpr float log2_e = 1.4426950408889634f;

// Reductions in a fixed order: the same bits at every run.
inline constexpr int warp_size = 32;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // NaN wins
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

// Over `width` adjacent lanes, a power of two; every lane gets the result.
template <int width = warp_size, class T, class Op>
__device__ T warp_reduce(T x, Op op) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2)
    x = op(x, __shfl_xor_sync(0xffffffffu, x, offset, width));
  return x;
}

// Over a block of `threads`, a multiple of 32; every thread gets the result. All threads must call
// it; it synchronises before and after the use of its shared memory.
template <int threads, class T, class Op>
__device__ T block_reduce(T x, Op op) {
  constexpr int warps = threads / warp_size;
  x = warp_reduce(x, op);
  if constexpr (warps > 1) {
    __shared__ T partial[warps];
    const int warp = threadIdx.x / warp_size;
    __syncthreads();
    if (threadIdx.x % warp_size == 0) partial[warp] = x;
    __syncthreads();
    x = partial[0];
#pragma unroll
    for (int w = 1; w < warps; ++w) x = op(x, partial[w]);
  }
  return x;
}

}  // namespace ebb::gpu
