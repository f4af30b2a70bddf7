// What Hopper's tensor cores need: products of bf16 by wgmma, whose four warps, a warpgroup, take
// tiles straight from shared memory and go on without waiting; copies of tiles by the TMA; barriers
// that count both.
//
//   x[64,cols] = a[64,width] · b[cols,width]ᵀ          multiply_rows()
//   sums[64,width] += p[64,cols] · b[cols,width]       add_product(), p in registers
//
// Of the results a thread holds the rows 16 · (warp % 4) + lane / 4 and that + 8, as s[0] and s[1],
// and of each the columns 2 · (lane % 4) and the next of every 8, as mma.sync has them: rounded
// results lie as the p of the next product does.
//
// Only code for sm_90a has these instructions: elsewhere has_wgmma is false and nothing here may be
// instantiated.
#pragma once
#include <cuda.h>

#include "ebb/ops/mma.cuh"

namespace ebb::gpu::hopper {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool has_wgmma = true;
#else
inline constexpr bool has_wgmma = false;
#endif

inline constexpr int warpgroup = 128;

// What a block is made of: `workers` multiply, and one warpgroup more copies.
template <int width_, int warpgroups_, int cols_, int stages_, bool in_turn_, int own_stages_>
struct Blocks {
  static constexpr int width = width_;
  static constexpr int warpgroups = warpgroups_;
  static constexpr int rows = 64 * warpgroups;
  static constexpr int cols = cols_;
  static constexpr int stages = stages_;
  static constexpr bool in_turn = in_turn_;
  static constexpr int own_stages = own_stages_;
  static constexpr int workers = warpgroups * warpgroup;
  static constexpr int threads = workers + warpgroup;
};

// Rows of bf16 in panels of 64 columns: 128 bytes, in which the eight chunks of row r change places
// by exclusive or with r % 8. The TMA writes and wgmma reads them so; panels begin at 1024 bytes.
template <int rows_, int width_>
struct alignas(1024) Panels {
  static constexpr int rows = rows_;
  static constexpr int width = width_;
  static constexpr int chunks = width / 8;
  static_assert(rows % 8 == 0 && width % 64 == 0);
  using Chunk = Pack<bf16, 8>;
  Chunk data[width / 64][rows][8];

  __device__ Chunk& at(int row, int chunk) { return data[chunk / 8][row][(chunk ^ row) % 8]; }
};

// Where an operand begins, with 128-byte swizzle (1 << 62): groups of eight rows are 1024 bytes
// apart; `panel` bytes from one panel to the next, for an operand that spans them side by side.
__device__ inline std::uint64_t descriptor(const void* p, int panel) {
  return (shared_address(p) & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(panel >> 4) << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

__device__ inline int lane() { return static_cast<int>(threadIdx.x % warp_size); }
__device__ inline int this_warpgroup() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / warpgroup, 0);
}

// Of the thread's r-th row and c-th column.
__device__ inline int row(int r) {
  return static_cast<int>(threadIdx.x) / warp_size * 16 + 8 * r + lane() / 4;
}
__device__ inline int col(int c) { return c / 2 * 8 + lane() % 4 * 2 + c % 2; }

// Which of a tile's columns the thread's r-th row sees.
struct Sight {
  int from[2], to[2];
  __device__ bool sees(int r, int column) const { return from[r] <= column && column < to[r]; }
};

// f(r, c, value) for each number that a thread has.
template <int n, class F>
__device__ void each(float (&x)[2][n], F f) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < n; ++c) f(r, c, x[r][c]);
}

// As the tensor cores take them.
template <int n>
__device__ void round(unsigned (&p)[n / 4][4], const float (&x)[2][n]) {
#pragma unroll
  for (int k = 0; k < n / 4; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      p[k][j] = pair(x[j % 2][4 * k + j / 2 * 2], x[j % 2][4 * k + j / 2 * 2 + 1]);
}

// Not 0 where one of two numbers has the exponent of NaN and infinity.
__device__ inline unsigned odd_of(unsigned both) {
  return ((both & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
}

// The products that follow see what registers and shared memory hold now.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// What comes before in the program and makes x is done here, what comes after and reads it is not:
// the compiler does not know by itself that products are in flight.
template <int n>
__device__ void pin(float (&x)[2][n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(x[0][i]), "+f"(x[1][i])::"memory");
}

// Waits for all groups of products but the last `pending`, which make x.
template <int pending, int n>
__device__ void wait_for_products(float (&x)[2][n]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
  pin(x);
}

// The assembler moves a wait up over arithmetic that it does not concern, which then runs beside no
// product. Not over this branch, which waits for x, that is never below 0.
__device__ inline void hold_back(float x) {
  if (x < 0) __nanosleep(1);
}

// s = a · b, added to what s holds if `keep`: a from shared memory and b by rows, or a from
// registers and b by columns.
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

// x = rows `first` to first + 63 of a, times b transposed. In flight until waited for.
template <int n, class A, class B>
__device__ void multiply_rows(float (&x)[2][n], const A& a, int first, const B& b) {
  static_assert(n == B::rows / 4 && A::width == B::width);
  begin_products();
#pragma unroll
  for (int k = 0; k < A::width / 16; ++k)
    multiply(x, descriptor(&a.data[k / 4][first], 16) + 2 * (k % 4),
             descriptor(&b.data[k / 4], 16) + 2 * (k % 4), k > 0);
  end_products();
}

template <int n, int steps, class B>
__device__ void add_product(float (&sums)[2][n], const unsigned (&p)[steps][4], const B& b) {
  static_assert(n == B::width / 4 && steps == B::rows / 16);
  begin_products();
#pragma unroll
  for (int k = 0; k < steps; ++k)
    multiply(sums, p[k], descriptor(b.data, sizeof(b.data[0])) + k * (16 * 128 >> 4), 1);
  end_products();
}

// Counts arrivals and bytes; it is in phase 0, then 1, then 0 … wait(phase) returns once that
// phase is over, and at once for phase 1 of a new barrier.
struct Barrier {
  std::uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ void arrive_expecting(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }
  __device__ void wait(int phase) {
    int over = 0;
    while (!over)
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.b32 %0, 1, 0, p;\n}\n"
          : "=r"(over)
          : "r"(shared_address(this)), "r"(phase)
          : "memory");
  }
};

// Tiles come and go in order; tile t is in stage t % stages.
template <int stages>
struct Ring {
  Barrier full[stages], empty[stages];

  __device__ void init(int fetches, int readers) {
    for (int stage = 0; stage < stages; ++stage) {
      full[stage].init(fetches);
      empty[stage].init(readers);
    }
  }
  __device__ Barrier& room(int t) {
    empty[t % stages].wait(t / stages % 2 ^ 1);
    return full[t % stages];
  }
  __device__ void wait(int t) { full[t % stages].wait(t / stages % 2); }
  __device__ void release(int t) { empty[t % stages].arrive(); }
};

// New barriers, or what threads wrote to shared memory, are seen by the TMA and by wgmma.
__device__ inline void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Over `threads` threads that use barrier `id` of 1 to 15; 0 is __syncthreads().
template <int id, int threads>
__device__ bool any_of(bool mine) {
  int any;
  asm volatile(
      "{\n.reg .pred p, q;\n"
      "setp.ne.b32 p, %1, 0;\n"
      "barrier.cta.red.or.pred q, %2, %3, p;\n"
      "selp.b32 %0, 1, 0, q;\n}\n"
      : "=r"(any)
      : "r"(int{mine}), "n"(id), "n"(threads)
      : "memory");
  return any != 0;
}
__device__ inline void sync_warpgroup(int id) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "n"(warpgroup) : "memory");
}

// Warpgroups take turns, so that one multiplies while others do arithmetic; or not.
template <int warpgroups, bool on>
struct Turns {
  int own, next;

  __device__ explicit Turns(int group) : own(8 + group), next(8 + (group + 1) % warpgroups) {
    if (group == warpgroups - 1) pass();
  }
  __device__ void wait() const {
    if constexpr (on)
      asm volatile("barrier.cta.sync %0, %1;" ::"r"(own), "n"(2 * warpgroup) : "memory");
  }
  __device__ void pass() const {
    if constexpr (on)
      asm volatile("barrier.cta.arrive %0, %1;" ::"r"(next), "n"(2 * warpgroup) : "memory");
  }
};

// Dynamic shared memory, from a multiple of 1024 bytes on.
template <class Memory>
__device__ Memory& swizzled_memory() {
  extern __shared__ unsigned char memory[];
  const unsigned over = shared_address(memory) % 1024;
  return *reinterpret_cast<Memory*>(memory + (over == 0 ? 0 : 1024 - over));
}

// Every thread of a block begins with as many registers as fit all; warpgroups that need fewer give
// them up for those that need more.
template <int n>
__device__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

template <int warpgroups>
inline constexpr int registers_of_workers = warpgroups == 2 ? 240 : 160;
inline constexpr int registers_of_others = 24;

// Fills a tile with rows `row` and on of one head, zeros beyond its end; `there` counts the bytes.
template <class Tile>
__device__ void fetch(Tile& tile, const CUtensorMap& map, int row, int head, int sequence,
                      Barrier& there) {
  there.arrive_expecting(sizeof(tile.data));
#pragma unroll
  for (int panel = 0; panel < Tile::width / 64; ++panel)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(tile.data[panel])),
        "l"(&map), "r"(64 * panel), "r"(row), "r"(head), "r"(sequence), "r"(shared_address(&there))
        : "memory");
}

template <class T, int n>
__device__ void fetch(T (&to)[n], const T* from, Barrier& there) {
  there.arrive_expecting(sizeof(to));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(static_cast<int>(sizeof(to))), "r"(shared_address(&there))
      : "memory");
}

}  // namespace ebb::gpu::hopper
