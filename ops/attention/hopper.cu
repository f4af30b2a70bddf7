// A block owns 64 rows for each of its two or three warpgroups, of queries or of keys, and meets
// the tiles of the others. Beside them one thread only copies:
//
//   that thread   what the block owns, then the others' tiles, one after the other into a ring of
//                 stages: full when its bytes are there, empty when every warp has read it
//   a warpgroup   forward: S = q kᵀ of tile t + 1 and sums += P v of tile t are both in flight;
//                 when S is there, its softmax runs beside the other product
//                 backward: S and dP, what P and dS are made of; then the products with P and dS
//
// Tensor cores stay busy as the warpgroups are at different places: one multiplies while another
// does its exponentials. P and dS go from registers into the product that needs them. A block stays
// for many places, so that the tiles of the next come while the last is being finished.
#include "ebb/ops/attention/hopper.h"

#include <limits>

#include "ebb/ops/attention/cores.cuh"
#include "ebb/ops/attention/hopper.cuh"
#include "ebb/ops/map.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::hopper;
using attention::log2_e;
using attention::power_of_two;

constexpr const char* op = "flash_attention";
constexpr float infinity = std::numeric_limits<float>::infinity();

// Of each tensor a map by which the TMA finds [head_dim, length, heads, batch].
struct Maps {
  CUtensorMap q, k, v;
};

// Which head and which of its rows a block owns, of queries or `of_keys`, and which tiles of the
// others they meet. There are as many blocks as run at a time, and places are dealt to them in
// turn: of as many heads as there are blocks first the rows with the most to do, then the next, so
// that all have the same to do and a block stays with its head; then come other heads.
template <class S, bool of_keys>
struct Place {
  std::int64_t line;  // the heads of all sequences are counted
  int head, sequence, first, length, begin, end;
  bool is_causal;

  // Of a head.
  __host__ __device__ static std::int64_t blocks_of(const FlashAttentionSize& s) {
    return divide_up<std::int64_t>(of_keys ? s.length_k : s.length_q, S::rows);
  }
  __device__ Place(const FlashAttentionSize& s, std::int64_t number)
      : length(static_cast<int>(of_keys ? s.length_q : s.length_k)), is_causal(s.is_causal) {
    const std::int64_t heads = s.batch * s.heads;
    const std::int64_t blocks = blocks_of(s);
    const std::int64_t before = number / (blocks * gridDim.x) * gridDim.x;  // heads
    const std::int64_t wide = min(heads - before, static_cast<std::int64_t>(gridDim.x));
    const std::int64_t rest = number - before * blocks;
    const auto block = static_cast<int>(rest / wide);
    line = before + rest % wide;
    head = static_cast<int>(line % s.heads);
    sequence = static_cast<int>(line / s.heads);
    first = (is_causal && !of_keys ? static_cast<int>(blocks) - 1 - block : block) * S::rows;
    begin = is_causal && of_keys ? first / S::cols : 0;
    end = divide_up(is_causal && !of_keys ? min(first + S::rows, length) : length, S::cols);
  }
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

// Of the keys so far, each row's largest score, the sum of the exponentials, and of the values that
// they weigh; they are scaled down by `shrink` when a larger score comes.
template <class S>
struct Softmax {
  float top[2] = {-infinity, -infinity};
  float total[2] = {};  // of this thread's columns
  float shrink[2];
  float sums[2][S::width / 4] = {};

  // x becomes the weights.
  __device__ void weigh(float (&x)[2][S::cols / 4], float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float high = top[r];
#pragma unroll
      for (float value : x[r]) high = fmaxf(high, value);
      high = warp_reduce<4>(high, [](float a, float b) { return fmaxf(a, b); });
      const float shift = high == -infinity ? 0.0f : __fmul_rn(high, scale);
      shrink[r] = power_of_two(fmaf(top[r], scale, -shift));
      top[r] = high;
      float sum = 0;
#pragma unroll
      for (float& value : x[r]) sum += value = power_of_two(fmaf(value, scale, -shift));
      total[r] = total[r] * shrink[r] + sum;
    }
  }
  __device__ void rescale() {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (float& value : sums[r]) value *= shrink[r];
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

template <class S>
struct AttendMemory {
  Panels<S::rows, S::width> q[S::own_stages];
  Panels<S::cols, S::width> k[S::stages], v[S::stages];
};
template <class S>
struct AttendBarriers {
  Ring<S::own_stages> q;
  Ring<S::stages> k, v;
  __device__ void init() {
    q.init(1, S::workers);
    k.init(1, S::workers);
    v.init(1, S::workers);
    show_barriers();
  }
};

// Of the i-th place of a block; n tiles have been before.
template <class S>
__device__ void copy_tiles(const Place<S, false>& at, int i, int n, const Maps& in,
                           AttendMemory<S>& m, AttendBarriers<S>& there) {
  fetch(m.q[i % S::own_stages], in.q, at.first, at.head, at.sequence, there.q.room(i));
  for (int t = 0; t < at.end; ++t, ++n) {
    fetch(m.k[n % S::stages], in.k, t * S::cols, at.head, at.sequence, there.k.room(n));
    fetch(m.v[n % S::stages], in.v, t * S::cols, at.head, at.sequence, there.v.room(n));
  }
}

template <class S>
__device__ void attend_rows(const FlashAttentionSize& s, const Place<S, false>& at, int i, int n,
                            AttendMemory<S>& m, AttendBarriers<S>& there,
                            const Turns<S::warpgroups, S::in_turn>& turns, const bf16* v, bf16* y,
                            float* lse) {
  const int group = this_warpgroup();
  auto& q = m.q[i % S::own_stages];
  const float sign = s.scale > 0 ? 1.0f : s.scale < 0 ? -1.0f : 0.0f;
  const float size = s.scale == 0 ? 1.0f : static_cast<float>(fabs(s.scale));
  Softmax<S> softmax;
  float x[2][S::cols / 4] = {};
  unsigned p[S::cols / 16][4];

  const auto scores = [&](int t) {
    there.k.wait(n + t);
    multiply_rows(x, q, 64 * group, m.k[(n + t) % S::stages]);
  };
  const auto weigh = [&](int t) {
    there.k.release(n + t);
    if (sign != 1) each(x, [&](int, int, float& score) { score *= sign; });
    if (!at.whole(t)) {
      const Sight sight = at.sight(t);
      each(x, [&](int r, int c, float& score) {
        if (!sight.sees(r, col(c))) score = -infinity;
      });
    }
    softmax.weigh(x, size * log2_e);
  };
  const auto find_odd = [&](int t) {
    if (!at.diagonal(t)) return false;
    there.v.wait(n + t);
    return clear_odd<S>(m.v[(n + t) % S::stages]);
  };
  const auto values = [&](int t) {
    there.v.wait(n + t);
    add_product(softmax.sums, p, m.v[(n + t) % S::stages]);
  };
  const auto finish = [&](int t, bool odd) {
    wait_for_products<0>(softmax.sums);
    there.v.release(n + t);
    if (odd)
      add_odd(softmax.sums, p, at.sight(t), at.rows_of(s, v, s.length_k, s.row, t * S::cols));
  };

  there.q.wait(i);
  scores(0);
  wait_for_products<0>(x);
  weigh(0);
  round(p, x);
  const int last = at.end - 1;
  for (int t = 0; t < last; ++t) {
    const bool odd = find_odd(t);
    turns.wait();
    scores(t + 1);
    values(t);
    turns.pass();
    wait_for_products<1>(x);
    weigh(t + 1);
    if constexpr (S::width == 128) hold_back(softmax.total[0] + softmax.total[1]);
    finish(t, odd);
    softmax.rescale();
    round(p, x);
  }
  const bool odd = find_odd(last);
  values(last);
  finish(last, odd);

  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float total = warp_reduce<4>(softmax.total[r], Sum{});
    const std::int64_t own = at.first + row(r);
    if (lane() % 4 == 0 && own < s.length_q)
      lse[at.line * s.length_q + own] = __fmul_rn(softmax.top[r], size) + logf(total);
    factor[r] = total == 0 ? 0.0f : 1 / total;
  }
  sync_warpgroup(2 + group);
  store<S>(softmax.sums, factor, at.rows_of(s, y, s.length_q, s.heads * s.head_dim, at.first), q);
  show_to_products();
  there.q.release(i);
}

template <class S>
__global__ void __launch_bounds__(S::threads, 1)
    attend(FlashAttentionSize s, std::int64_t places, const __grid_constant__ Maps in,
           const bf16* v, bf16* y, float* lse) {
  if constexpr (has_wgmma) {
    __shared__ AttendBarriers<S> there;
    auto& m = swizzled_memory<AttendMemory<S>>();
    if (threadIdx.x == 0) there.init();
    __syncthreads();
    int i = 0, n = 0;
    const auto each_place = [&](auto f) {
      for (std::int64_t number = blockIdx.x; number < places; number += gridDim.x) {
        const Place<S, false> at(s, number);
        f(at);
        ++i, n += at.end;
      }
    };
    if (threadIdx.x >= S::workers) {
      keep_registers<registers_of_others>();
      if (threadIdx.x == S::workers)
        each_place([&](const auto& at) { copy_tiles(at, i, n, in, m, there); });
    } else {
      take_registers<registers_of_workers<S::warpgroups>>();
      const Turns<S::warpgroups, S::in_turn> turns(this_warpgroup());
      each_place([&](const auto& at) { attend_rows(s, at, i, n, m, there, turns, v, y, lse); });
    }
  } else {
    __trap();
  }
}

// What belongs to queries: the lse, in the unit of power_of_two(), +∞ where no key is seen and
// beyond the end, so that P is 0 there; and D.
template <class T>
struct Statistics {
  T *lse, *d;
};

// Of each head `padded` queries, a multiple of every tile's rows.
constexpr int statistics_threads = 256;
template <int lanes_a_row>
__global__ void __launch_bounds__(statistics_threads)
    summarize(FlashAttentionSize s, std::int64_t padded, const bf16* y, const bf16* dy,
              const float* lse, Statistics<float> out) {
  const std::int64_t n =
      (blockIdx.x * std::int64_t{statistics_threads} + threadIdx.x) / lanes_a_row;
  const std::int64_t line = n / padded, i = n % padded;
  const auto chunk = static_cast<int>(threadIdx.x) % lanes_a_row;
  float d = 0;
  if (i < s.length_q && 8 * chunk < s.head_dim) {
    const std::int64_t at =
        ((line / s.heads * s.length_q + i) * s.heads + line % s.heads) * s.head_dim + 8 * chunk;
    const auto a = *reinterpret_cast<const Pack<bf16, 8>*>(y + at);
    const auto b = *reinterpret_cast<const Pack<bf16, 8>*>(dy + at);
#pragma unroll
    for (int j = 0; j < 8; ++j) d += widen(a.v[j]) * widen(b.v[j]);
  }
  d = warp_reduce<lanes_a_row>(d, Sum{});
  if (chunk != 0) return;
  const float own = i < s.length_q ? lse[line * s.length_q + i] * log2_e : -infinity;
  out.lse[n] = own == -infinity ? infinity : own;
  out.d[n] = d;
}

template <class S>
struct GradientMemory {
  Panels<S::rows, S::width> own[S::own_stages][2];
  Panels<S::cols, S::width> others[S::stages][2];
  alignas(16) float lse[S::stages][S::cols], d[S::stages][S::cols];
};
template <class S, bool of_keys>
struct GradientBarriers {
  Ring<S::own_stages> own;
  Ring<S::stages> others;
  __device__ void init() {
    own.init(2, S::workers);
    others.init(of_keys ? 4 : 2, S::workers);
    show_barriers();
  }
};

// Maps of own and others' tiles, in pairs: queries and upstream gradients, or keys and values.
struct GradientMaps {
  CUtensorMap own[2], others[2];
};

// Of the i-th place of a block; n tiles have been before.
template <class S, bool of_keys>
__device__ void copy_tiles(const Place<S, of_keys>& at, int i, int n, const GradientMaps& in,
                           GradientMemory<S>& m, GradientBarriers<S, of_keys>& there,
                           Statistics<const float> statistics, std::int64_t padded) {
  Barrier& own = there.own.room(i);
  for (int j = 0; j < 2; ++j)
    fetch(m.own[i % S::own_stages][j], in.own[j], at.first, at.head, at.sequence, own);
  for (int t = at.begin; t < at.end; ++t, ++n) {
    const int stage = n % S::stages;
    Barrier& full = there.others.room(n);
    for (int j = 0; j < 2; ++j)
      fetch(m.others[stage][j], in.others[j], t * S::cols, at.head, at.sequence, full);
    if constexpr (of_keys) {
      fetch(m.lse[stage], statistics.lse + at.line * padded + t * S::cols, full);
      fetch(m.d[stage], statistics.d + at.line * padded + t * S::cols, full);
    }
  }
}

// dq of some queries, which meet all keys; or dk and dv of some keys, which meet all queries, with
// P and dS lying on their sides:
//   own (q, dy), others (k, v):   x = S,   z = dP,   dq += dS k
//   own (k, v), others (q, dy):   x = Sᵀ,  z = dPᵀ,  dk += dSᵀ q,  dv += Pᵀ dy
// f(r, c, value, what belongs to its row), or to its column.
template <bool of_cols, int n, class F>
__device__ void each_with(float (&x)[2][n], const float (&rows)[2], const float* cols, F f) {
  if constexpr (!of_cols) {
    each(x, [&](int r, int c, float& value) { f(r, c, value, rows[r]); });
  } else {
#pragma unroll
    for (int c = 0; c < n; c += 2) {
      const auto both = *reinterpret_cast<const Pack<float, 2>*>(cols + col(c));
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) f(r, c + e, x[r][c + e], both.v[e]);
    }
  }
}

template <class S, bool of_keys>
__device__ void gradients_of_rows(const FlashAttentionSize& s, const Place<S, of_keys>& at, int i,
                                  int n, GradientMemory<S>& m, GradientBarriers<S, of_keys>& there,
                                  const Turns<S::warpgroups, S::in_turn>& turns,
                                  Statistics<const float> statistics, std::int64_t padded,
                                  const bf16* other_x, const bf16* other_v, bf16* dx, bf16* dv) {
  const int group = this_warpgroup();
  auto& own = m.own[i % S::own_stages];
  const auto scale = static_cast<float>(s.scale);
  float x[2][S::cols / 4] = {}, z[2][S::cols / 4] = {};
  float sums_x[2][S::width / 4] = {}, sums_v[2][of_keys ? S::width / 4 : 1] = {};
  unsigned p[S::cols / 16][4], ds[S::cols / 16][4];
  float own_lse[2] = {}, own_d[2] = {};
#pragma unroll
  for (int r = 0; r < 2 && !of_keys; ++r) {
    own_lse[r] = statistics.lse[at.line * padded + at.first + row(r)];
    own_d[r] = statistics.d[at.line * padded + at.first + row(r)];
  }

  there.own.wait(i);
  for (int t = at.begin; t < at.end; ++t, ++n) {
    const int stage = n % S::stages;
    auto& others = m.others[stage];
    there.others.wait(n);
    turns.wait();
    multiply_rows(x, own[0], 64 * group, others[0]);
    multiply_rows(z, own[1], 64 * group, others[1]);
    turns.pass();
    const Sight sight = at.sight(t);
    const auto mask = [&](float(&values)[2][S::cols / 4]) {
      if (at.whole(t)) return;
      each(values, [&](int r, int c, float& value) {
        if (!sight.sees(r, col(c))) value = 0;
      });
    };
    wait_for_products<1>(x);
    each_with<of_keys>(x, own_lse, m.lse[stage], [&](int, int, float& weight, float lse) {
      weight = power_of_two(fmaf(weight, scale * log2_e, -lse));
    });
    mask(x);
    wait_for_products<0>(z);
    each_with<of_keys>(z, own_d, m.d[stage],
                       [&](int r, int c, float& slope, float d) { slope = x[r][c] * (slope - d); });
    mask(z);
    const bool odd_x = at.diagonal(t) && clear_odd<S>(others[0]);
    const bool odd_v = of_keys && at.diagonal(t) && clear_odd<S>(others[1]);
    if constexpr (of_keys) round(p, x);
    round(ds, z);
    turns.wait();
    if constexpr (of_keys) add_product(sums_v, p, others[1]);
    add_product(sums_x, ds, others[0]);
    turns.pass();
    wait_for_products<0>(sums_x);
    pin(sums_v);
    there.others.release(n);
    const std::int64_t length = of_keys ? s.length_q : s.length_k;
    if (odd_x) add_odd(sums_x, ds, sight, at.rows_of(s, other_x, length, s.row, t * S::cols));
    if constexpr (of_keys) {
      const std::int64_t step = s.heads * s.head_dim;
      if (odd_v) add_odd(sums_v, p, sight, at.rows_of(s, other_v, length, step, t * S::cols));
    }
  }

  sync_warpgroup(2 + group);
  const std::int64_t length = of_keys ? s.length_k : s.length_q;
  store<S>(sums_x, {scale, scale}, at.rows_of(s, dx, length, s.row, at.first), own[0]);
  if constexpr (of_keys)
    store<S>(sums_v, {1, 1}, at.rows_of(s, dv, length, s.row, at.first), own[1]);
  show_to_products();
  there.own.release(i);
}

template <class S, bool of_keys>
__global__ void __launch_bounds__(S::threads, 1)
    gradients(FlashAttentionSize s, std::int64_t places, const __grid_constant__ GradientMaps in,
              Statistics<const float> statistics, std::int64_t padded, const bf16* other_x,
              const bf16* other_v, bf16* dx, bf16* dv) {
  if constexpr (has_wgmma) {
    __shared__ GradientBarriers<S, of_keys> there;
    auto& m = swizzled_memory<GradientMemory<S>>();
    if (threadIdx.x == 0) there.init();
    __syncthreads();
    int i = 0, n = 0;
    const auto each_place = [&](auto f) {
      for (std::int64_t number = blockIdx.x; number < places; number += gridDim.x) {
        const Place<S, of_keys> at(s, number);
        f(at);
        ++i, n += max(at.end - at.begin, 0);
      }
    };
    if (threadIdx.x >= S::workers) {
      keep_registers<registers_of_others>();
      if (threadIdx.x == S::workers)
        each_place([&](const auto& at) { copy_tiles(at, i, n, in, m, there, statistics, padded); });
    } else {
      take_registers<registers_of_workers<S::warpgroups>>();
      const Turns<S::warpgroups, S::in_turn> turns(this_warpgroup());
      each_place([&](const auto& at) {
        gradients_of_rows(s, at, i, n, m, there, turns, statistics, padded, other_x, other_v, dx,
                          dv);
      });
    }
  } else {
    __trap();
  }
}

using Encode = decltype(cuTensorMapEncodeTiled);

// The driver's function, found at run time so that nothing is linked to the driver.
Encode* encoder() {
  static Encode* const found = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    const auto status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                         cudaEnableDefault, &result);
#else
    const auto status =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &result);
#endif
    if (status != cudaSuccess) cudaGetLastError();
    const bool there = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<Encode*>(f) : nullptr;
  }();
  return found;
}

// Of q, k, v or what has their layout, for tiles of `rows` rows and 64 columns.
CUtensorMap map_of(const FlashAttentionSize& s, const bf16* x, std::int64_t length,
                   std::int64_t row, int rows) {
  using std::uint64_t;
  const auto u = [](std::int64_t n) { return static_cast<uint64_t>(n); };
  const uint64_t sizes[] = {u(s.head_dim), u(length), u(s.heads), u(s.batch)};
  const uint64_t steps[] = {2 * u(row), 2 * u(s.head_dim), 2 * u(length * row)};
  const unsigned box[] = {64, static_cast<unsigned>(rows), 1, 1};
  const unsigned ones[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<bf16*>(x), sizes, steps, box,
                ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, Kind::cuda, op, "no tensor map", static_cast<int>(result), 0);
  return map;
}

// Blocks as they were measured to be fastest, for a head_dim of up to 64 and up to 128.
using Attend64 = Blocks<64, 3, 128, 2, true, 2>;
using Attend128 = Blocks<128, 2, 128, 2, true, 2>;
using OfQueries64 = Blocks<64, 2, 128, 3, false, 2>;
using OfQueries128 = Blocks<128, 2, 128, 2, false, 1>;
using OfKeys64 = Blocks<64, 2, 128, 2, false, 2>;
using OfKeys128 = Blocks<128, 2, 64, 2, true, 1>;

// Code for another architecture has no barriers.
bool compiled() {
  static const bool there = [] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, attend<Attend64>), op);
    return attributes.sharedSizeBytes > 0;
  }();
  return there;
}

template <class T>
bool aligned_rows(const FlashAttentionSize& s, const std::array<T*, 3>& x, const void* y) {
  return s.head_dim % 8 == 0 && aligned(x[0]) && aligned(x[1]) && aligned(x[2]) && aligned(y);
}

bool fits(const FlashAttentionSize& s, Dtype dtype) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  const bool some = s.batch > 0 && s.length_q > 0 && s.length_k > 0 && s.heads > 0;
  return dtype == Dtype::bf16 && s.dropout.threshold == 0 && some && s.head_dim <= 128 &&
         s.length_q <= most && s.length_k <= most && compute_capability() == 90 &&
         encoder() != nullptr && compiled();
}

// As many as run at a time: one a multiprocessor.
dim3 blocks_for(std::int64_t places) {
  return dim3(static_cast<unsigned>(std::min<std::int64_t>(places, multiprocessors())));
}

template <class S>
void launch_attend(const FlashAttentionSize& s, const std::array<const bf16*, 3>& in, bf16* y,
                   float* lse) {
  const Maps maps{map_of(s, in[0], s.length_q, s.row, S::rows),
                  map_of(s, in[1], s.length_k, s.row, S::cols),
                  map_of(s, in[2], s.length_k, s.row, S::cols)};
  const std::int64_t places = s.batch * s.heads * Place<S, false>::blocks_of(s);
  launch(op, attend<S>, blocks_for(places), S::threads, sizeof(AttendMemory<S>) + 1024, s, places,
         maps, in[2], y, lse);
}

template <class S, bool of_keys>
void launch_gradients(const FlashAttentionSize& s, const std::array<const bf16*, 3>& in,
                      const bf16* dy, Statistics<const float> statistics, std::int64_t padded,
                      bf16* dx, bf16* dv) {
  const int of_q = of_keys ? S::cols : S::rows, of_k = of_keys ? S::rows : S::cols;
  const CUtensorMap q = map_of(s, in[0], s.length_q, s.row, of_q);
  const CUtensorMap upstream = map_of(s, dy, s.length_q, s.heads * s.head_dim, of_q);
  const CUtensorMap k = map_of(s, in[1], s.length_k, s.row, of_k);
  const CUtensorMap v = map_of(s, in[2], s.length_k, s.row, of_k);
  const GradientMaps maps =
      of_keys ? GradientMaps{{k, v}, {q, upstream}} : GradientMaps{{q, upstream}, {k, v}};
  const std::int64_t places = s.batch * s.heads * Place<S, of_keys>::blocks_of(s);
  launch(op, gradients<S, of_keys>, blocks_for(places), S::threads,
         sizeof(GradientMemory<S>) + 1024, s, places, maps, statistics, padded,
         of_keys ? in[0] : in[1], of_keys ? dy : in[2], dx, dv);
}

}  // namespace

bool gpu::hopper::flash_attention(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                  const Tensor& v, Tensor& y, Tensor& lse) {
  if (!fits(s, q.dtype())) return false;
  const auto in = attention_parts<bf16>(s, q, k, v);
  bf16* const out = y.data<bf16>();
  if (!aligned_rows(s, in, out)) return false;
  float* const of_lse = lse.data<float>();
  if (s.head_dim <= 64)
    launch_attend<Attend64>(s, in, out, of_lse);
  else
    launch_attend<Attend128>(s, in, out, of_lse);
  return true;
}

bool gpu::hopper::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q,
                                           const Tensor& k, const Tensor& v, const Tensor& y,
                                           const Tensor& lse, const Tensor& dy, Tensor& dq,
                                           Tensor& dk, Tensor& dv) {
  if (!fits(s, q.dtype())) return false;
  const auto in = attention_parts<bf16>(s, q, k, v);
  const auto dx = attention_parts<bf16>(s, dq, dk, dv);
  const bf16* const upstream = dy.data<bf16>();
  if (!aligned_rows(s, in, upstream) || !aligned_rows(s, dx, y.data<bf16>())) return false;
  const std::int64_t padded = divide_up<std::int64_t>(s.length_q, 128) * 128;
  const std::int64_t rows = s.batch * s.heads * padded;
  Tensor scratch = empty({2, rows}, lse.options());
  const Statistics<float> own{scratch.data<float>(), scratch.data<float>() + rows};
  const Statistics<const float> statistics{own.lse, own.d};
  const auto summarize_by = [&]<int lanes_a_row>() {
    launch(op, summarize<lanes_a_row>,
           dim3(static_cast<unsigned>(rows * lanes_a_row / statistics_threads)), statistics_threads,
           0, s, padded, y.data<bf16>(), upstream, lse.data<float>(), own);
  };
  s.head_dim <= 64 ? summarize_by.template operator()<8>() : summarize_by.template operator()<16>();
  const auto with = [&](auto of_q, auto of_k) {
    launch_gradients<decltype(of_q), false>(s, in, upstream, statistics, padded, dx[0], nullptr);
    launch_gradients<decltype(of_k), true>(s, in, upstream, statistics, padded, dx[1], dx[2]);
  };
  if (s.head_dim <= 64)
    with(OfQueries64{}, OfKeys64{});
  else
    with(OfQueries128{}, OfKeys128{});
  return true;
}

}  // namespace ebb
