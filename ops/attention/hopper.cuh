// What flash attention's kernels for bf16 on Hopper share, forward and backward. A block owns 64
// rows for each of its two or three warpgroups, of queries or of keys, and meets the tiles of the
// others. Beside them one thread only copies: what the block owns, then the others' tiles, one
// after the other into a ring of stages, full when its bytes are there, empty when every warp has
// read it.
//
//   x[64,cols] = a[64,width] · b[cols,width]ᵀ          multiply_rows()
//   sums[64,width] += p[64,cols] · b[cols,width]       add_product(), p in registers
//
// Tensor cores stay busy as the warpgroups are at different places: one multiplies while another
// does its exponentials. A block stays for many places, so that the tiles of the next come while
// the last is being finished.
#pragma once
#include "ebb/ops/attention/hopper_places.cuh"

namespace ebb::gpu::hopper {

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

// The assembler moves a wait up over arithmetic that it does not concern, which then runs beside no
// product. Not over this branch, which waits for x, that is never below 0.
__device__ inline void hold_back(float x) {
  if (x < 0) __nanosleep(1);
}

// What is in shared memory, by an address that stays in registers: else it is made again and again.
template <class T>
__device__ T& kept_at(T& x) {
  T* at = &x;
  asm volatile("" : "+l"(at));
  __builtin_assume(__isShared(at));
  return *at;
}

// x = rows `first` to first + 63 of a, times b transposed. In flight until waited for.
template <int n, class A, class B>
__device__ void multiply_rows(float (&x)[2][n], const A& a, int first, const B& b) {
  static_assert(n == B::rows / 4 && A::width == B::width);
  const std::uint64_t left = descriptor(&a.data[0][first], 16), right = descriptor(b.data, 16);
  begin_products();
#pragma unroll
  for (int k = 0; k < A::width / 16; ++k)
    multiply(x, moved(left, k / 4 * (A::rows * 8) + 2 * (k % 4)),
             moved(right, k / 4 * (B::rows * 8) + 2 * (k % 4)), k > 0);
  end_products();
}

template <int n, int steps, class B>
__device__ void add_product(float (&sums)[2][n], const unsigned (&p)[steps][4], const B& b) {
  static_assert(n == B::width / 4 && steps == B::rows / 16);
  const std::uint64_t right = descriptor(b.data, sizeof(b.data[0]));
  begin_products();
#pragma unroll
  for (int k = 0; k < steps; ++k) multiply(sums, p[k], moved(right, k * 16 * 8), 1);
  end_products();
}

// Warpgroups take turns, so that one multiplies while others do arithmetic.
template <int warpgroups>
struct Turns {
  int own, next;

  __device__ explicit Turns(int group) : own(8 + group), next(8 + (group + 1) % warpgroups) {
    if (group == warpgroups - 1) pass();
  }
  __device__ void wait() const {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(own), "n"(2 * warpgroup) : "memory");
  }
  __device__ void pass() const {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(next), "n"(2 * warpgroup) : "memory");
  }
};

// Fills a tile with rows `row` and on of one head, zeros beyond its end; `there` counts the bytes.
template <class Tile>
__device__ void fetch(Tile& tile, const CUtensorMap& map, int row, int head, int sequence,
                      Barrier& there) {
  there.arrive_expecting(sizeof(tile.data));
#pragma unroll
  for (int panel = 0; panel < Tile::width / 64; ++panel)
    copy_box(tile.data[panel], map, 64 * panel, row, head, sequence, there);
}
template <class T, int n>
__device__ void fetch(T (&to)[n], const T* from, Barrier& there) {
  there.arrive_expecting(sizeof(to));
  copy(to, from, sizeof(to), there);
}

// What a row does not see is left out, not multiplied by its 0: it may be NaN or infinite. The
// tensor cores get 0 in place of such numbers, all at once when the scores are there, and who sees
// them adds them after; true if there is any.
template <class S, class Tile>
__device__ bool clear_odd(Tile& tile) {
  unsigned* const words = reinterpret_cast<unsigned*>(tile.data);
  constexpr int count = sizeof(tile.data) / sizeof(uint4);
  unsigned any = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += S::workers) {
    const uint4 four = reinterpret_cast<const uint4*>(words)[i];
    any |= odd_of(four.x) | odd_of(four.y) | odd_of(four.z) | odd_of(four.w);
  }
  if (!any_of<1, S::workers>(any != 0)) return false;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < 4 * count; i += S::workers)
    words[i] &= ~((odd_of(words[i]) >> 15) * 0xffffu);
  show_to_products();
  return any_of<1, S::workers>(true);
}

// sums += p · (NaN and infinities of a tile), whose rows are these.
template <int n, int steps>
__device__ void add_odd(float (&sums)[2][n], const unsigned (&p)[steps][4], const Sight& sight,
                        const attention::Rows<const bf16>& rows) {
#pragma unroll
  for (int k = 0; k < steps; ++k)
#pragma unroll 1
    for (int j = 0; j < 16; ++j) {
      const int from = (lane() & ~3) | (j % 8 / 2);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const unsigned both = __shfl_sync(0xffffffffu, j < 8 ? p[k][r] : p[k][r + 2], from);
        const float weight = __uint_as_float(j % 2 ? both & 0xffff0000u : both << 16);
        if (!sight.sees(r, 16 * k + j) || 16 * k + j >= rows.left) continue;
#pragma unroll
        for (int c = 0; c < n; ++c) {
          if (col(c) >= rows.head_dim) continue;
          const float value = widen(rows.data[(16 * k + j) * rows.step + col(c)]);
          if (!(fabsf(value) < infinity)) sums[r][c] += weight * value;
        }
      }
    }
}

template <class S>
__device__ void store(const float (&sums)[2][S::width / 4], const float (&factor)[2],
                      const attention::Rows<bf16>& to, Panels<S::rows, S::width>& staging) {
  constexpr int chunks = S::width / 8;
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < S::width / 4; c += 2)
      reinterpret_cast<unsigned*>(&staging.at(row(r), c / 2))[lane() % 4] =
          pair(sums[r][c] * factor[r], sums[r][c + 1] * factor[r]);
  __syncwarp();
  for (int i = lane(); i < 16 * chunks; i += warp_size) {
    const int row = static_cast<int>(threadIdx.x) / warp_size * 16 + i / chunks;
    const int chunk = i % chunks;
    if (row < to.left && 8 * chunk < to.head_dim)
      *reinterpret_cast<Pack<bf16, 8>*>(to.data + row * to.step + 8 * chunk) =
          staging.at(row, chunk);
  }
}

// Of q, k, v or what has their layout, for tiles of `rows` rows and 64 columns.
inline CUtensorMap map_of(const FlashAttentionSize& s, const bf16* x, std::int64_t length,
                          std::int64_t row, int rows) {
  using std::uint64_t;
  const auto u = [](std::int64_t n) { return static_cast<uint64_t>(n); };
  const uint64_t sizes[] = {u(s.head_dim), u(length), u(s.heads), u(s.batch)};
  const uint64_t steps[] = {2 * u(row), 2 * u(s.head_dim), 2 * u(length * row)};
  const unsigned box[] = {64, static_cast<unsigned>(rows), 1, 1};
  const unsigned ones[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<bf16*>(x), sizes, steps, box, ones,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, Kind::cuda, op, "no tensor map", static_cast<int>(result), 0);
  return map;
}

inline bool fits(const FlashAttentionSize& s, Dtype dtype) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  const bool some = s.batch > 0 && s.length_q > 0 && s.length_k > 0 && s.heads > 0;
  return dtype == Dtype::bf16 && some && s.head_dim <= 128 && s.head_dim % pack_size<bf16> == 0 &&
         s.length_q <= most && s.length_k <= most && compute_capability() == 90 &&
         tensor_map_encoder() != nullptr;
}

}  // namespace ebb::gpu::hopper
