// Forward of bf16 on Hopper (hopper.cuh): S = q kᵀ of tile t + 1 and sums += P v of tile t are both
// in flight; when S is there, its softmax runs beside the other product. P goes from registers into
// the product that needs it.
#include "ebb/core/basic.h"
#include "ebb/ops/attention/hopper.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::hopper;

// Of each tensor a map by which the TMA finds [head_dim, length, heads, batch].
struct Maps {
  CUtensorMap q, k, v;
};

// m, l and o of flash_attention.h, and r. A larger score becomes `top` only where its weight would
// be above 2 to the power of `most_above`: few tiles shrink what is there, and each row by itself.
constexpr float most_above = 8;
template <class S>
struct Softmax {
  float top[2] = {-infinity, -infinity};
  float total[2] = {};  // of this thread's columns
  float shrink[2] = {1, 1};
  float sums[2][S::width / 4] = {};

  // x becomes the weights. Both rows and two columns at a time: with one chain of operations after
  // another a warp would wait for each result.
  __device__ void weigh(float (&x)[2][S::cols / 4], float scale) {
    float high[2][2] = {{top[0], x[0][1]}, {top[1], x[1][1]}};
    float sum[2][2] = {}, shift[2];
#pragma unroll
    for (int c = 0; c < S::cols / 4; ++c)
#pragma unroll
      for (int r = 0; r < 2; ++r) high[r][c % 2] = fmaxf(high[r][c % 2], x[r][c]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = top[r];
      const float highest = warp_reduce<4>(fmaxf(high[r][0], high[r][1]),
                                           [](float a, float b) { return fmaxf(a, b); });
      const bool near = fmaf(highest, scale, -__fmul_rn(top[r], scale)) <= most_above;
      if (!near) top[r] = highest;
      shift[r] = top[r] == -infinity ? 0.0f : __fmul_rn(top[r], scale);
      shrink[r] = near ? 1.0f : power_of_two(fmaf(before, scale, -shift[r]));
    }
#pragma unroll
    for (int c = 0; c < S::cols / 4; ++c)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        sum[r][c % 2] += x[r][c] = power_of_two(fmaf(x[r][c], scale, -shift[r]));
#pragma unroll
    for (int r = 0; r < 2; ++r) total[r] = total[r] * shrink[r] + (sum[r][0] + sum[r][1]);
  }
  __device__ void rescale() {
    if (!__any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (float& value : sums[r]) value *= shrink[r];
  }
};

template <class S>
struct AttendMemory {
  Panels<S::rows, S::width> q[S::own_stages];
  Panels<S::cols, S::width> k[S::stages], v[S::stages];
};
template <class S>
struct AttendBarriers {
  Owned<S, 1> q;
  Ring<S::stages> k, v;
  __device__ void init() {
    q.init();
    k.init(1, S::workers);
    v.init(1, S::workers);
    show_barriers();
  }
};

// Before the tiles of this place n others come.
template <class S>
__device__ void copy_tiles(const Place<S, false>& at, int n, const Maps& in,
                           Panels<S::rows, S::width>& q, Barrier& q_there, AttendMemory<S>& m,
                           AttendBarriers<S>& there) {
  fetch(q, in.q, at.first, at.head, at.sequence, q_there);
  for (int t = 0; t < at.end; ++t, ++n) {
    fetch(m.k[n % S::stages], in.k, t * S::cols, at.head, at.sequence, there.k.room(n));
    fetch(m.v[n % S::stages], in.v, t * S::cols, at.head, at.sequence, there.v.room(n));
  }
}

template <bool drops, class S>
__device__ void attend_rows(const FlashAttentionSize& s, const Place<S, false>& at, int n,
                            Panels<S::rows, S::width>& q, AttendMemory<S>& m,
                            AttendBarriers<S>& there, const Turns<S::warpgroups>& turns,
                            const bf16* v, bf16* y, float* lse) {
  const int group = this_warpgroup();
  const attention::Scale<float> scale(s.scale);
  const auto draws = drops ? attention::draws_of<false>(s, at.line) : attention::Draws<false>{};
  Softmax<S> softmax;
  float x[2][S::cols / 4] = {};
  unsigned p[S::cols / 16][4];

  const auto scores = [&](int t) {
    const int stage = uniform((n + t) % S::stages);
    there.k.wait(n + t);
    multiply_rows(x, q, 64 * group, m.k[stage]);
  };
  const auto weigh = [&](int t, auto whole) {
    there.k.release(n + t);
    if (scale.sign != 1) each(x, [&](int, int, float& score) { score *= scale.sign; });
    if (!whole && !at.whole(t)) {
      const Sight sight = at.sight(t);
      each(x, [&](int r, int c, float& score) {
        if (!sight.sees(r, col(c))) score = -infinity;
      });
    }
    softmax.weigh(x, scale.size * log2_e);
    if constexpr (drops)
      draw<S::cols>(draws, at.first, t * S::cols, [&](int r, int c, unsigned bits) {
        if (bits < s.dropout.threshold) x[r][c] = 0;
      });
  };
  const auto find_odd = [&](int t) {
    if (!at.diagonal(t)) return false;
    there.v.wait(n + t);
    return clear_odd<S>(m.v[(n + t) % S::stages]);
  };
  const auto values = [&](int t) {
    const int stage = uniform((n + t) % S::stages);
    there.v.wait(n + t);
    add_product(softmax.sums, p, m.v[stage]);
  };
  const auto finish = [&](int t, bool odd) {
    wait_for_products<0>(softmax.sums);
    there.v.release(n + t);
    if (odd)
      add_odd(softmax.sums, p, at.sight(t), at.rows_of(s, v, s.length_k, s.row, t * S::cols));
  };

  // The values of tile t beside the scores of the next; whole: neither hides anything.
  const auto step = [&](int t, auto whole) {
    const bool odd = !whole && find_odd(t);
    turns.wait();
    scores(t + 1);
    softmax.rescale();
    values(t);
    turns.pass();
    wait_for_products<1>(x);
    weigh(t + 1, whole);
    if constexpr (S::warpgroups == 2) hold_back(softmax.total[0] + softmax.total[1]);
    finish(t, odd);
    round(p, x);
  };

  scores(0);
  wait_for_products<0>(x);
  weigh(0, std::false_type{});
  round(p, x);
  const int last = at.end - 1, end = at.end_of_whole(0);
  int t = 0;
  for (; t < end - 1; ++t) step(t, std::true_type{});
  for (; t < last; ++t) step(t, std::false_type{});
  const bool odd = find_odd(last);
  softmax.rescale();
  values(last);
  finish(last, odd);

  float factor[2];
  finish_rows<drops>(softmax, s, at, scale.size, lse, factor);
  sync_warpgroup(2 + group);
  store<S>(softmax.sums, factor, at.rows_of(s, y, s.length_q, s.heads * s.head_dim, at.first), q);
  show_to_products();
}

template <class S, bool drops>
__global__ void __launch_bounds__(S::threads, 1)
    attend(FlashAttentionSize s, Deal deal, const __grid_constant__ Maps in, const bf16* v, bf16* y,
           float* lse) {
  if constexpr (has_wgmma) {
    __shared__ AttendBarriers<S> barriers;
    auto& there = kept_at(barriers);
    auto& m = kept_at(swizzled_memory<AttendMemory<S>>());
    if (threadIdx.x == 0) there.init();
    __syncthreads();
    const Turns<S::warpgroups> turns(this_warpgroup());
    using At = Place<S, false>;
    run_dealt<At>(
        s, deal, there.q,
        [&](const At& at, int n, int stage, Barrier& q_there) {
          copy_tiles(at, n, in, m.q[stage], q_there, m, there);
        },
        [&](const At& at, int n, int stage) {
          attend_rows<drops>(s, at, n, m.q[stage], m, there, turns, v, y, lse);
        });
  } else {
    __trap();
  }
}

// Blocks as they were measured to be fastest, for a head_dim of up to 64 and up to 128.
using Attend64 = Blocks<64, 2, 128, 4, 2>;
using TallAttend64 = Blocks<64, 3, 128, 2, 2>;
using Attend128 = Blocks<128, 2, 128, 2, 2>;

// With a third warpgroup a block does a twelfth more in the same time, but more beyond the end and
// beyond the diagonal, and there is no room for random bits.
bool tall_is_faster(const FlashAttentionSize& s) {
  const auto rows = [&](int unit) { return divide_up<std::int64_t>(s.length_q, unit) * unit; };
  return s.dropout.threshold == 0 &&
         (s.is_causal ? s.length_q >= 4096 : 12 * rows(192) <= 13 * rows(128));
}

template <class S, bool drops>
void launch_attend(const FlashAttentionSize& s, const std::array<const bf16*, 3>& in, bf16* y,
                   float* lse, Device device) {
  const Maps maps{map_of(s, in[0], s.length_q, s.row, S::rows),
                  map_of(s, in[1], s.length_k, s.row, S::cols),
                  map_of(s, in[2], s.length_k, s.row, S::cols)};
  Deal deal = Place<S, false>::deal(s, nullptr);
  Tensor taken;
  if (s.is_causal && deal.places > 4 * multiprocessors()) {  // few or equal ones need no turns
    taken = empty({1}, {Dtype::i32, device});
    deal.taken = taken.data<std::int32_t>();
    fill_bytes(deal.taken, 0, sizeof(int));
  }
  launch(op, attend<S, drops>, blocks_for(deal), S::threads, sizeof(AttendMemory<S>) + 1024, s,
         deal, maps, in[2], y, lse);
}

}  // namespace

bool gpu::hopper::flash_attention(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                  const Tensor& v, Tensor& y, Tensor& lse) {
  if (!fits(s, q.dtype()) || !has_barriers<attend<Attend64, false>>(op)) return false;
  const auto in = attention_parts<bf16>(s, q, k, v);
  bf16* const out = y.data<bf16>();
  float* const of_lse = lse.data<float>();
  const auto with = [&]<class S, bool drops>() {
    launch_attend<S, drops>(s, in, out, of_lse, y.device());
  };
  if (s.head_dim <= 64 && tall_is_faster(s))
    with.template operator()<TallAttend64, false>();
  else
    attention::with_dropout(s, [&](auto drops) {
      if (s.head_dim <= 64)
        with.template operator()<Attend64, drops>();
      else
        with.template operator()<Attend128, drops>();
    });
  return true;
}

}  // namespace ebb
