// What flash attention's kernels for Hopper share, forward and backward. A block owns 64 rows for
// each of its two or three warpgroups, of queries or of keys, and meets the tiles of the others.
// Beside them one thread only copies: what the block owns, then the others' tiles, one after the
// other into a ring of stages, full when its bytes are there, empty when every warp has read it.
//
//   x[64,cols] = a[64,width] · b[cols,width]ᵀ          multiply_rows()
//   sums[64,width] += p[64,cols] · b[cols,width]       add_product(), p in registers
//
// Tensor cores stay busy as the warpgroups are at different places: one multiplies while another
// does its exponentials. A block stays for many places, so that the tiles of the next come while
// the last is being finished.
#pragma once
#include <limits>

#include "ebb/ops/attention/cores.cuh"
#include "ebb/ops/map.cuh"
#include "ebb/ops/wgmma.cuh"

namespace ebb::gpu::hopper {

using attention::log2_e;
using attention::power_of_two;

inline constexpr std::string_view op = "flash_attention";
inline constexpr float infinity = std::numeric_limits<float>::infinity();

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

template <int warpgroups>
inline constexpr int registers_of_workers = warpgroups == 2 ? 240 : 160;
inline constexpr int registers_of_others = 24;

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

// What a warp's lanes agree on, so that the compiler knows it, too.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
__device__ inline int lane() { return static_cast<int>(threadIdx.x % warp_size); }
__device__ inline int this_warpgroup() {
  return uniform(static_cast<int>(threadIdx.x) / warpgroup);
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

// f(r, c, bits) for each number that a thread has: they lie as mma.sync has them.
template <int cols, bool of_keys, class F>
__device__ void draw(const attention::Draws<of_keys>& draws, int own, int other, F f) {
  attention::TensorCore<64, 1, cols>::draw(draws, own, other, f);
}

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

// The assembler moves a wait up over arithmetic that it does not concern, which then runs beside no
// product. Not over this branch, which waits for x, that is never below 0.
__device__ inline void hold_back(float x) {
  if (x < 0) __nanosleep(1);
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

// How places, which blocks stay at one after the other, are dealt out: there are as many blocks as
// run at a time, and each takes the next place when it has room for it, so that all end together.
struct Deal {
  std::int64_t places;
  std::int64_t together;  // heads: places of so many follow each other, then come other heads
  int* taken;             // beside the first one of each block; null: each has every gridDim-th

  __device__ std::int64_t after(std::int64_t number) const {
    return gridDim.x + (taken ? atomicAdd(taken, 1) : number);
  }
};

// The ring of what a block owns, with the numbers of its places, which the copying thread finds.
template <class S, int fetches>
struct Owned {
  Ring<S::own_stages> ring;
  std::int64_t numbers[S::own_stages];

  __device__ void init() { ring.init(fetches, S::workers); }
  __device__ Barrier& room(int i, std::int64_t number) {
    Barrier& full = ring.room(i);
    numbers[i % S::own_stages] = number;
    return full;
  }
  // copy(i, number) for the i-th place of the block, by the copying thread.
  template <class F>
  __device__ void send(const Deal& deal, F copy) {
    int i = 0;
    for (std::int64_t number = blockIdx.x, next; number < deal.places; number = next, ++i) {
      next = deal.after(number);  // asked for before the copies: it takes a while
      copy(i, number);
    }
    Barrier& full = room(i, -1);
    for (int k = 0; k < fetches; ++k) full.arrive();
  }
  // work(i, number) when what the place owns is there, by all others.
  template <class F>
  __device__ void receive(F work) {
    for (int i = 0;; ++i) {
      ring.wait(i);
      const std::int64_t number = numbers[i % S::own_stages];
      if (number < 0) return;
      work(i, number);
      ring.release(i);
    }
  }
};

// Which head and which of its rows a block owns, of queries or `of_keys`, and which tiles of the
// others they meet. Of heads that are dealt together first the rows with the most to do come, then
// the next.
template <class S, bool of_keys>
struct Place {
  std::int64_t line;  // the heads of all sequences are counted
  int head, sequence, first, length, begin, end;
  bool is_causal;

  // Of a head.
  __host__ __device__ static std::int64_t blocks_of(const FlashAttentionSize& s) {
    return divide_up<std::int64_t>(of_keys ? s.length_k : s.length_q, S::rows);
  }
  // What heads that are dealt together read again and again stays in the L2 cache.
  static Deal deal(const FlashAttentionSize& s, int* taken) {
    constexpr std::int64_t cached = 32 << 20;
    const std::int64_t heads = s.batch * s.heads;
    const std::int64_t bytes = 2 * sizeof(bf16) * (of_keys ? s.length_q : s.length_k) * s.head_dim;
    return {heads * blocks_of(s), std::clamp<std::int64_t>(cached / bytes, 1, heads), taken};
  }
  __device__ Place(const FlashAttentionSize& s, std::int64_t together, std::int64_t number)
      : length(static_cast<int>(of_keys ? s.length_q : s.length_k)), is_causal(s.is_causal) {
    const std::int64_t blocks = blocks_of(s);
    const std::int64_t before = number / (blocks * together) * together;  // heads
    const std::int64_t wide = min(s.batch * s.heads - before, together);
    const std::int64_t rest = number - before * blocks;
    const auto block = static_cast<int>(rest / wide);
    line = before + rest % wide;
    head = static_cast<int>(line % s.heads);
    sequence = static_cast<int>(line / s.heads);
    first = (is_causal && !of_keys ? static_cast<int>(blocks) - 1 - block : block) * S::rows;
    begin = is_causal && of_keys ? first / S::cols : 0;
    end = divide_up(is_causal && !of_keys ? min(first + S::rows, length) : length, S::cols);
  }
  __device__ int tiles() const { return max(end - begin, 0); }
  __device__ bool diagonal(int t) const {
    return is_causal &&
           (of_keys ? t * S::cols < first + S::rows - 1 : (t + 1) * S::cols - 1 > first);
  }
  __device__ bool whole(int t) const { return !diagonal(t) && (t + 1) * S::cols <= length; }
  __device__ Sight sight(int t) const {
    Sight sight;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int own = first + row(r);
      sight.from[r] = of_keys && is_causal ? own - t * S::cols : 0;
      sight.to[r] = (is_causal && !of_keys ? min(length, own + 1) : length) - t * S::cols;
    }
    return sight;
  }
  // Of the head in a tensor whose sequences have `rows` rows, `step` elements apart: row `i`.
  template <class T>
  __device__ attention::Rows<T> rows_of(const FlashAttentionSize& s, T* x, std::int64_t rows,
                                        std::int64_t step, int i) const {
    x += (sequence * rows + i) * step + head * s.head_dim;
    return {x, step, rows - i, static_cast<int>(s.head_dim), true};
  }
};

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

template <class T>
bool aligned_rows(const FlashAttentionSize& s, const std::array<T*, 3>& x, const void* y) {
  return s.head_dim % 8 == 0 && aligned(x[0]) && aligned(x[1]) && aligned(x[2]) && aligned(y);
}

inline bool fits(const FlashAttentionSize& s, Dtype dtype) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  const bool some = s.batch > 0 && s.length_q > 0 && s.length_k > 0 && s.heads > 0;
  return dtype == Dtype::bf16 && some && s.head_dim <= 128 && s.length_q <= most &&
         s.length_k <= most && compute_capability() == 90 && tensor_map_encoder() != nullptr;
}

// As many as run at a time: one a multiprocessor.
inline dim3 blocks_for(const Deal& deal) {
  return dim3(static_cast<unsigned>(std::min<std::int64_t>(deal.places, multiprocessors())));
}

}  // namespace ebb::gpu::hopper
