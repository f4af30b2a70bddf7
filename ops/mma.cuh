// What drives tensor cores: products of bf16 with sums in f32 by mma.sync m16n8k16, a warp's work
// each, tiles in shared memory, and copies into them that do not wait. For sm_80 and newer; older
// GPUs compile it, and must not run multiply() and the loads of fragments.
//
//   sums[16,8] += a[16,16] · b[16,8]
//
// Of the sums a thread holds, in rows lane / 4 and lane / 4 + 8, columns 2 · (lane % 4) and the
// next. Two neighbouring blocks of sums, rounded, lie as an `a` does: a product can go straight
// into the next one.
#pragma once
#include "ebb/core/cuda.cuh"

namespace ebb::gpu {

// Two numbers in one register, as the tensor cores take them.
__device__ inline unsigned pair(float low, float high) {
  return static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(low))) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// Rows of bf16 in shared memory, in chunks of 16 bytes whose places are exchanged from row to row:
// eight chunks under each other, like eight beside each other, are in different banks.
template <int rows_, int width>
struct SwizzledTile {
  static constexpr int rows = rows_;
  static constexpr int chunks = width / 8;
  static_assert(chunks % 4 == 0);
  using Chunk = Pack<bf16, 8>;
  Chunk data[rows * chunks];

  __device__ Chunk& at(int row, int chunk) {
    return data[row * chunks + (chunk ^ (chunks % 8 == 0 ? row % 8 : row / 2 % 4))];
  }
};

__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ inline void multiply(float& s0, float& s1, float& s2, float& s3, const unsigned (&a)[4],
                                unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(s0), "+f"(s1), "+f"(s2), "+f"(s3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four blocks of 8 × 8, whose rows of 16 bytes the lanes name, eight lanes a block; transposed, a
// thread gets neighbours of a column.
__device__ inline void load_blocks(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 aligned bytes from global to shared memory, or zeros: there after the thread's next
// wait_for_copies().
__device__ inline void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
// The same through the first-level cache, for bytes that the multiprocessor copies again.
__device__ inline void copy_async_cached(void* to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
// The same where the 256 bytes around them are copied soon: so memory is read in long runs.
__device__ inline void copy_async_ahead(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The thread's copies since the last commit become a group; all but the newest `left` groups are
// waited for.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left>
__device__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// sums[16,8] += a[16,8] · b[8,8] of TF32, float32 with a mantissa of 10 bits: the thread's four
// numbers of a are in rows lane / 4 and the eighth after, columns lane % 4 and the fourth after.
__device__ inline void multiply_tf32(float& s0, float& s1, float& s2, float& s3,
                                     const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(s0), "+f"(s1), "+f"(s2), "+f"(s3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The nearest TF32.
__device__ inline float to_tf32(float x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}
#else
__device__ inline void multiply(float&, float&, float&, float&, const unsigned (&)[4], unsigned,
                                unsigned) {
  __trap();
}
__device__ inline void load_blocks(unsigned (&)[4], const void*) { __trap(); }
__device__ inline void load_transposed(unsigned (&)[4], const void*) { __trap(); }
__device__ inline void copy_async(void* to, const void* from, bool inside) {
  *static_cast<uint4*>(to) = inside ? *static_cast<const uint4*>(from) : uint4{};
}
__device__ inline void copy_async_cached(void* to, const void* from, bool inside) {
  copy_async(to, from, inside);
}
__device__ inline void copy_async_ahead(void* to, const void* from, bool inside) {
  copy_async(to, from, inside);
}
__device__ inline void wait_for_copies() {}
__device__ inline void commit_copies() {}
template <int left>
__device__ void wait_for_groups() {}
__device__ inline void multiply_tf32(float&, float&, float&, float&, const unsigned (&)[4],
                                     unsigned, unsigned) {
  __trap();
}
__device__ inline float to_tf32(float x) { return x; }
#endif

}  // namespace ebb::gpu
