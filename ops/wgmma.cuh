// Products by Hopper's tensor cores, wgmma, whose four warps, a warpgroup, take tiles straight from
// shared memory and go on without waiting.
//
//   sums[64,cols] += a[64,k] · b[k,cols]     k of one instruction: 16 of bf16, 8 of TF32
//
// b is in shared memory, and a there or in registers: as a descriptor says, in panels with
// 128-byte swizzle or in chunks of 16 bytes. An operand is along k if neighbours in memory follow
// each other along k, else across it.
//
// Of the results a thread holds the rows 16 · (warp % 4) + lane / 4 and that + 8, and of each the
// columns 2 · (lane % 4) and the next of every 8, as mma.sync has them: rounded results lie as the
// a of the next product does.
#pragma once
#include "ebb/ops/hopper.cuh"

namespace ebb::gpu::hopper {

// Where an operand of panels begins, with 128-byte swizzle (1 << 62): groups of eight rows are 1024
// bytes apart; `panel` bytes from one panel to the next, for an operand that spans them side by
// side.
__device__ inline std::uint64_t descriptor(const void* p, int panel) {
  return (shared_address(p) & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(panel >> 4) << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

// Where an operand of chunks begins; bytes from one chunk to the next along k, and from eight rows
// to the next: of an operand across k, whose chunks are rows of one k, from eight k to the next,
// and from one chunk to the next.
__device__ inline std::uint64_t chunk_descriptor(const void* p, int k_stride, int row_stride) {
  return (shared_address(p) & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(k_stride >> 4) << 16 |
         static_cast<std::uint64_t>(row_stride >> 4) << 32;
}

// What begins `chunks` of 16 bytes further on: only the low word changes.
__device__ inline std::uint64_t moved(std::uint64_t descriptor, int chunks) {
  const unsigned low = static_cast<unsigned>(descriptor) + static_cast<unsigned>(chunks);
  return descriptor >> 32 << 32 | low;
}

// The products that follow see what registers and shared memory hold now.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Values before this in the program are made here, as the compiler does not know by itself what
// products in flight read and write.
template <int n>
__device__ void hold(float (&x)[n]) {
#pragma unroll
  for (float& value : x) asm volatile("" : "+f"(value)::"memory");
}
template <int n, int m>
__device__ void hold(float (&x)[n][m]) {
#pragma unroll
  for (auto& values : x) hold(values);
}

// Waits for all groups of products but the last `pending`; of them x is what they make.
template <int pending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
template <int pending, int n, int m>
__device__ void wait_for_products(float (&x)[n][m]) {
  wait_for_products<pending>();
  hold(x);
}

// s = a · b of bf16, added to what s holds if `keep`: a in shared memory and both along k, or a in
// registers and b across k.
__device__ inline void multiply(float (&s)[2][16], std::uint64_t a, std::uint64_t b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[0][4]), "+f"(s[0][5]), "+f"(s[1][4]), "+f"(s[1][5]),
        "+f"(s[0][6]), "+f"(s[0][7]), "+f"(s[1][6]), "+f"(s[1][7]), "+f"(s[0][8]), "+f"(s[0][9]),
        "+f"(s[1][8]), "+f"(s[1][9]), "+f"(s[0][10]), "+f"(s[0][11]), "+f"(s[1][10]),
        "+f"(s[1][11]), "+f"(s[0][12]), "+f"(s[0][13]), "+f"(s[1][12]), "+f"(s[1][13]),
        "+f"(s[0][14]), "+f"(s[0][15]), "+f"(s[1][14]), "+f"(s[1][15])
      : "l"(a), "l"(b), "r"(keep));
}

__device__ inline void multiply(float (&s)[2][16], const unsigned (&a)[4], std::uint64_t b,
                                int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[0][4]), "+f"(s[0][5]), "+f"(s[1][4]), "+f"(s[1][5]),
        "+f"(s[0][6]), "+f"(s[0][7]), "+f"(s[1][6]), "+f"(s[1][7]), "+f"(s[0][8]), "+f"(s[0][9]),
        "+f"(s[1][8]), "+f"(s[1][9]), "+f"(s[0][10]), "+f"(s[0][11]), "+f"(s[1][10]),
        "+f"(s[1][11]), "+f"(s[0][12]), "+f"(s[0][13]), "+f"(s[1][12]), "+f"(s[1][13]),
        "+f"(s[0][14]), "+f"(s[0][15]), "+f"(s[1][14]), "+f"(s[1][15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

__device__ inline void multiply(float (&s)[2][32], std::uint64_t a, std::uint64_t b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[0][4]), "+f"(s[0][5]), "+f"(s[1][4]), "+f"(s[1][5]),
        "+f"(s[0][6]), "+f"(s[0][7]), "+f"(s[1][6]), "+f"(s[1][7]), "+f"(s[0][8]), "+f"(s[0][9]),
        "+f"(s[1][8]), "+f"(s[1][9]), "+f"(s[0][10]), "+f"(s[0][11]), "+f"(s[1][10]),
        "+f"(s[1][11]), "+f"(s[0][12]), "+f"(s[0][13]), "+f"(s[1][12]), "+f"(s[1][13]),
        "+f"(s[0][14]), "+f"(s[0][15]), "+f"(s[1][14]), "+f"(s[1][15]), "+f"(s[0][16]),
        "+f"(s[0][17]), "+f"(s[1][16]), "+f"(s[1][17]), "+f"(s[0][18]), "+f"(s[0][19]),
        "+f"(s[1][18]), "+f"(s[1][19]), "+f"(s[0][20]), "+f"(s[0][21]), "+f"(s[1][20]),
        "+f"(s[1][21]), "+f"(s[0][22]), "+f"(s[0][23]), "+f"(s[1][22]), "+f"(s[1][23]),
        "+f"(s[0][24]), "+f"(s[0][25]), "+f"(s[1][24]), "+f"(s[1][25]), "+f"(s[0][26]),
        "+f"(s[0][27]), "+f"(s[1][26]), "+f"(s[1][27]), "+f"(s[0][28]), "+f"(s[0][29]),
        "+f"(s[1][28]), "+f"(s[1][29]), "+f"(s[0][30]), "+f"(s[0][31]), "+f"(s[1][30]),
        "+f"(s[1][31])
      : "l"(a), "l"(b), "r"(keep));
}

__device__ inline void multiply(float (&s)[2][32], const unsigned (&a)[4], std::uint64_t b,
                                int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[0][4]), "+f"(s[0][5]), "+f"(s[1][4]), "+f"(s[1][5]),
        "+f"(s[0][6]), "+f"(s[0][7]), "+f"(s[1][6]), "+f"(s[1][7]), "+f"(s[0][8]), "+f"(s[0][9]),
        "+f"(s[1][8]), "+f"(s[1][9]), "+f"(s[0][10]), "+f"(s[0][11]), "+f"(s[1][10]),
        "+f"(s[1][11]), "+f"(s[0][12]), "+f"(s[0][13]), "+f"(s[1][12]), "+f"(s[1][13]),
        "+f"(s[0][14]), "+f"(s[0][15]), "+f"(s[1][14]), "+f"(s[1][15]), "+f"(s[0][16]),
        "+f"(s[0][17]), "+f"(s[1][16]), "+f"(s[1][17]), "+f"(s[0][18]), "+f"(s[0][19]),
        "+f"(s[1][18]), "+f"(s[1][19]), "+f"(s[0][20]), "+f"(s[0][21]), "+f"(s[1][20]),
        "+f"(s[1][21]), "+f"(s[0][22]), "+f"(s[0][23]), "+f"(s[1][22]), "+f"(s[1][23]),
        "+f"(s[0][24]), "+f"(s[0][25]), "+f"(s[1][24]), "+f"(s[1][25]), "+f"(s[0][26]),
        "+f"(s[0][27]), "+f"(s[1][26]), "+f"(s[1][27]), "+f"(s[0][28]), "+f"(s[0][29]),
        "+f"(s[1][28]), "+f"(s[1][29]), "+f"(s[0][30]), "+f"(s[0][31]), "+f"(s[1][30]),
        "+f"(s[1][31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

// sums[64,224] += a[64,k] · b[k,224], both along k: 16 of bf16, 8 of TF32. Here and below, sums are
// not added to what s holds if `keep` is 0.
template <class T>
__device__ void multiply_along(float (&s)[112], std::uint64_t a, std::uint64_t b, int keep = 1) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %114, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n224k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111}, "
        "%112, %113, p, 1, 1, 0, 0;\n}"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
          "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
          "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]),
          "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
          "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]),
          "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]), "+f"(s[41]),
          "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]),
          "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]),
          "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]),
          "+f"(s[63]), "+f"(s[64]), "+f"(s[65]), "+f"(s[66]), "+f"(s[67]), "+f"(s[68]), "+f"(s[69]),
          "+f"(s[70]), "+f"(s[71]), "+f"(s[72]), "+f"(s[73]), "+f"(s[74]), "+f"(s[75]), "+f"(s[76]),
          "+f"(s[77]), "+f"(s[78]), "+f"(s[79]), "+f"(s[80]), "+f"(s[81]), "+f"(s[82]), "+f"(s[83]),
          "+f"(s[84]), "+f"(s[85]), "+f"(s[86]), "+f"(s[87]), "+f"(s[88]), "+f"(s[89]), "+f"(s[90]),
          "+f"(s[91]), "+f"(s[92]), "+f"(s[93]), "+f"(s[94]), "+f"(s[95]), "+f"(s[96]), "+f"(s[97]),
          "+f"(s[98]), "+f"(s[99]), "+f"(s[100]), "+f"(s[101]), "+f"(s[102]), "+f"(s[103]),
          "+f"(s[104]), "+f"(s[105]), "+f"(s[106]), "+f"(s[107]), "+f"(s[108]), "+f"(s[109]),
          "+f"(s[110]), "+f"(s[111])
        : "l"(a), "l"(b), "r"(keep));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %114, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n224k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111}, "
        "%112, %113, p, 1, 1;\n}"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
          "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
          "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]),
          "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
          "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]),
          "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]), "+f"(s[41]),
          "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]),
          "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]),
          "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]),
          "+f"(s[63]), "+f"(s[64]), "+f"(s[65]), "+f"(s[66]), "+f"(s[67]), "+f"(s[68]), "+f"(s[69]),
          "+f"(s[70]), "+f"(s[71]), "+f"(s[72]), "+f"(s[73]), "+f"(s[74]), "+f"(s[75]), "+f"(s[76]),
          "+f"(s[77]), "+f"(s[78]), "+f"(s[79]), "+f"(s[80]), "+f"(s[81]), "+f"(s[82]), "+f"(s[83]),
          "+f"(s[84]), "+f"(s[85]), "+f"(s[86]), "+f"(s[87]), "+f"(s[88]), "+f"(s[89]), "+f"(s[90]),
          "+f"(s[91]), "+f"(s[92]), "+f"(s[93]), "+f"(s[94]), "+f"(s[95]), "+f"(s[96]), "+f"(s[97]),
          "+f"(s[98]), "+f"(s[99]), "+f"(s[100]), "+f"(s[101]), "+f"(s[102]), "+f"(s[103]),
          "+f"(s[104]), "+f"(s[105]), "+f"(s[106]), "+f"(s[107]), "+f"(s[108]), "+f"(s[109]),
          "+f"(s[110]), "+f"(s[111])
        : "l"(a), "l"(b), "r"(keep));
  }
}

// sums[64,n] += a[64,16] · b[16,n] of bf16, both across k.
__device__ inline void multiply_across(float (&s)[32], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.u32 p, 1, 1;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 1, 1;\n}"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
        "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
        "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]),
        "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
        "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31])
      : "l"(a), "l"(b));
}
__device__ inline void multiply_across(float (&s)[64], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.u32 p, 1, 1;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 1, 1;\n}"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
        "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
        "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]),
        "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
        "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]),
        "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]), "+f"(s[41]),
        "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]),
        "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]),
        "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]),
        "+f"(s[63])
      : "l"(a), "l"(b));
}

// sums[64,n] += a[64,8] · b[8,n] of TF32, a in registers as mma.sync has it, b along k.
__device__ inline void multiply_tf32(float (&s)[16], const unsigned (&a)[4], std::uint64_t b,
                                     int keep = 1) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1;\n}"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
        "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
        "+f"(s[14]), "+f"(s[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
__device__ inline void multiply_tf32(float (&s)[32], const unsigned (&a)[4], std::uint64_t b,
                                     int keep = 1) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1;\n}"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
        "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
        "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]),
        "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
        "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
__device__ inline void multiply_tf32(float (&s)[64], const unsigned (&a)[4], std::uint64_t b,
                                     int keep = 1) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1;\n}"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
        "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),
        "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]),
        "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
        "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]),
        "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]), "+f"(s[41]),
        "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]),
        "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]),
        "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]),
        "+f"(s[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

}  // namespace ebb::gpu::hopper
