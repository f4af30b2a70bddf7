// Backward of bf16 on Hopper (hopper.cuh): S and dP, what P and dS are made of; then the products
// with P and dS, which go there from registers. One kernel for dq and one for dk and dv: no sum
// depends on who comes first.
#include "ebb/ops/attention/hopper.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::hopper;

// What belongs to queries, the lse in the unit of power_of_two().
template <class T>
struct Statistics {
  T *lse, *d;
};

// Of each head `padded` queries, a multiple of every tile's rows.
constexpr int statistics_threads = 256;
template <int lanes_a_row>
__global__ void __launch_bounds__(statistics_threads)
    summarize(FlashAttentionSize s, std::int64_t padded, const bf16* y, const bf16* dy,
              const float* lse, Statistics<float> out, int* taken) {
  if (blockIdx.x == 0 && threadIdx.x < 2) taken[threadIdx.x] = 0;
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
  Owned<S, 2> own;
  Ring<S::stages> others;
  __device__ void init() {
    own.init();
    others.init(of_keys ? 4 : 2, S::workers);
    show_barriers();
  }
};

// Maps of own and others' tiles, in pairs: queries and upstream gradients, or keys and values.
struct GradientMaps {
  CUtensorMap own[2], others[2];
};

// Before the tiles of this place n others come.
template <class S, bool of_keys>
__device__ void copy_tiles(const Place<S, of_keys>& at, int n, const GradientMaps& in,
                           Panels<S::rows, S::width> (&own)[2], Barrier& own_there,
                           GradientMemory<S>& m, GradientBarriers<S, of_keys>& there,
                           Statistics<const float> statistics, std::int64_t padded) {
  for (int j = 0; j < 2; ++j) fetch(own[j], in.own[j], at.first, at.head, at.sequence, own_there);
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

// A weight, which is not below 0, with a sign that says that it is dropped; a NaN keeps that, too.
__device__ inline float marked(float weight) {
  return __uint_as_float(__float_as_uint(weight) | 0x80000000u);
}
__device__ inline bool is_marked(float weight) { return (__float_as_uint(weight) >> 31) != 0; }

// Tiles that hide nothing are met `ahead`: x of the next is made before dq or dk of this one, so
// that its exponentials run beside these products, and z beside the exponentials.
template <bool drops, class S, bool of_keys>
__device__ void gradients_of_rows(const FlashAttentionSize& s, const Place<S, of_keys>& at, int n,
                                  Panels<S::rows, S::width> (&own)[2], GradientMemory<S>& m,
                                  GradientBarriers<S, of_keys>& there,
                                  Statistics<const float> statistics, std::int64_t padded,
                                  const bf16* other_x, const bf16* other_v, bf16* dx, bf16* dv) {
  const auto scale = static_cast<float>(s.scale);
  const float kept = drops ? static_cast<float>(s.dropout.scale) : 1.0f;
  const auto draws = drops ? attention::draws_of<of_keys>(s, at.line) : attention::Draws<of_keys>{};
  float x[2][S::cols / 4], z[2][S::cols / 4];
  float sums_x[2][S::width / 4] = {}, sums_v[2][of_keys ? S::width / 4 : 1] = {};
  unsigned p[S::cols / 16][4], ds[S::cols / 16][4];
  float own_lse[2] = {}, own_d[2] = {};
#pragma unroll
  for (int r = 0; r < 2 && !of_keys; ++r) {
    own_lse[r] = statistics.lse[at.line * padded + at.first + row(r)];
    own_d[r] = statistics.d[at.line * padded + at.first + row(r)];
  }

  // Ahead at 128 columns registers are scarce: the warpgroup is asked for again and again, as what
  // follows from it would fill them, and dv has to wait for dS.
  constexpr bool ahead = S::ahead && !drops, scarce = ahead && S::width > 64;
  const int group = this_warpgroup();
  const auto first_row = [&] { return 64 * (scarce ? this_warpgroup() : group); };
  const auto others = [&](int n) -> auto& {
    return m.others[scarce ? uniform(n % S::stages) : n % S::stages];
  };
  const auto make_x = [&](int n) {
    there.others.wait(n);
    multiply_rows(x, own[0], first_row(), others(n)[0]);
  };
  const auto make_z = [&](int n) { multiply_rows(z, own[1], first_row(), others(n)[1]); };
  const auto weigh = [&](int n) {
    each_with<of_keys>(x, own_lse, m.lse[n % S::stages], [&](int, int, float& weight, float lse) {
      weight = power_of_two(fmaf(weight, scale * log2_e, -lse));
    });
  };
  const auto differentiate = [&](int n) {
    each_with<of_keys>(z, own_d, m.d[n % S::stages], [&](int r, int c, float& slope, float d) {
      if constexpr (drops) {
        const bool dropped = is_marked(x[r][c]);
        slope = fabsf(x[r][c]) * ((dropped ? 0.0f : slope * kept) - d);
        if (dropped) x[r][c] = 0;
      } else {
        slope = x[r][c] * (slope - d);
      }
    });
  };
  const auto add_v = [&](int n) {
    if constexpr (of_keys) add_product(sums_v, p, others(n)[1]);
  };
  const auto add_x = [&](int n) { add_product(sums_x, ds, others(n)[0]); };

  const auto meet = [&](int t, int n) {
    make_x(n);
    make_z(n);
    wait_for_products<1>(x);
    weigh(n);
    if constexpr (drops)
      draw<S::cols>(draws, at.first, t * S::cols, [&](int r, int c, unsigned bits) {
        if (bits < s.dropout.threshold) x[r][c] = marked(x[r][c]);
      });
    const Sight sight = at.sight(t);
    const auto mask = [&](float(&values)[2][S::cols / 4]) {
      if (at.whole(t)) return;
      each(values, [&](int r, int c, float& value) {
        if (!sight.sees(r, col(c))) value = 0;
      });
    };
    mask(x);
    wait_for_products<0>(z);
    differentiate(n);
    mask(z);
    const bool odd_x = at.diagonal(t) && clear_odd<S>(others(n)[0]);
    const bool odd_v = of_keys && at.diagonal(t) && clear_odd<S>(others(n)[1]);
    if constexpr (of_keys) round(p, x);
    round(ds, z);
    add_v(n);
    add_x(n);
    wait_for_products<0>(sums_x);
    hold(sums_v);
    there.others.release(n);
    const std::int64_t length = of_keys ? s.length_q : s.length_k;
    if (odd_x) add_odd(sums_x, ds, sight, at.rows_of(s, other_x, length, s.row, t * S::cols));
    if constexpr (of_keys) {
      const std::int64_t step = s.heads * s.head_dim;
      if (odd_v) add_odd(sums_v, p, sight, at.rows_of(s, other_v, length, step, t * S::cols));
    }
  };

  // Tiles t to end - 1. When the weights of one are made, its x is there, and dq or dk of the one
  // before may be on its way.
  const auto meet_ahead = [&](int t, int end, int n) {
    const auto weights = [&](bool is_first) {
      make_z(n);
      weigh(n);
      if constexpr (of_keys) round(p, x);
      if constexpr (!scarce) add_v(n);
      wait_for_products<(of_keys && !scarce)>(z);
      hold(sums_x);
      if (!is_first) there.others.release(n - 1);
      differentiate(n);
      round(ds, z);
      if constexpr (scarce) add_v(n);
    };
    make_x(n);
    wait_for_products<0>(x);
    for (int i = t; i < end - 1; ++i, ++n) {
      weights(i == t);
      make_x(n + 1);
      add_x(n);
      wait_for_products<1>(x);
      hold(sums_v);
    }
    weights(t == end - 1);
    add_x(n);
    wait_for_products<0>(sums_x);
    hold(sums_v);
    there.others.release(n);
  };

  for (int t = at.begin; t < at.end;) {
    const int end = ahead ? at.end_of_whole(t) : t;
    if (t < end) {
      meet_ahead(t, end, n);
      n += end - t;
      t = end;
    } else {
      meet(t++, n++);
    }
  }

  sync_warpgroup(2 + group);
  const std::int64_t length = of_keys ? s.length_k : s.length_q;
  store<S>(sums_x, {scale, scale}, at.rows_of(s, dx, length, s.row, at.first), own[0]);
  if constexpr (of_keys)
    store<S>(sums_v, {kept, kept}, at.rows_of(s, dv, length, s.row, at.first), own[1]);
  show_to_products();
}

template <class S, bool of_keys, bool drops>
__global__ void __launch_bounds__(S::threads, 1)
    gradients(FlashAttentionSize s, Deal deal, const __grid_constant__ GradientMaps in,
              Statistics<const float> statistics, std::int64_t padded, const bf16* other_x,
              const bf16* other_v, bf16* dx, bf16* dv) {
  if constexpr (has_wgmma) {
    __shared__ GradientBarriers<S, of_keys> barriers;
    auto& there = kept_at(barriers);
    auto& m = kept_at(swizzled_memory<GradientMemory<S>>());
    if (threadIdx.x == 0) there.init();
    __syncthreads();
    using At = Place<S, of_keys>;
    run_dealt<At>(
        s, deal, there.own,
        [&](const At& at, int n, int stage, Barrier& own_there) {
          copy_tiles(at, n, in, m.own[stage], own_there, m, there, statistics, padded);
        },
        [&](const At& at, int n, int stage) {
          gradients_of_rows<drops>(s, at, n, m.own[stage], m, there, statistics, padded, other_x,
                                   other_v, dx, dv);
        });
  } else {
    __trap();
  }
}

// Blocks as they were measured to be fastest, for a head_dim of up to 64 and up to 128. Ahead, x,
// z, dS and the sums are in registers at a time: there is no room for wider ones.
template <int width, int cols, int stages, int own_stages, bool ahead_>
struct GradientBlocks : Blocks<width, 2, cols, stages, own_stages> {
  static constexpr bool ahead = ahead_;
};
using OfQueries64 = GradientBlocks<64, 128, 3, 2, true>;
using OfQueries128 = GradientBlocks<128, 128, 2, 1, false>;
using OfKeys64 = GradientBlocks<64, 64, 4, 2, true>;
using OfKeys128 = GradientBlocks<128, 64, 4, 1, true>;

template <class S, bool of_keys, bool drops>
void launch_gradients(const FlashAttentionSize& s, const std::array<const bf16*, 3>& in,
                      const bf16* dy, Statistics<const float> statistics, std::int64_t padded,
                      int* taken, bf16* dx, bf16* dv) {
  const int of_q = of_keys ? S::cols : S::rows, of_k = of_keys ? S::rows : S::cols;
  const CUtensorMap q = map_of(s, in[0], s.length_q, s.row, of_q);
  const CUtensorMap upstream = map_of(s, dy, s.length_q, s.heads * s.head_dim, of_q);
  const CUtensorMap k = map_of(s, in[1], s.length_k, s.row, of_k);
  const CUtensorMap v = map_of(s, in[2], s.length_k, s.row, of_k);
  const GradientMaps maps =
      of_keys ? GradientMaps{{k, v}, {q, upstream}} : GradientMaps{{q, upstream}, {k, v}};
  const Deal deal = Place<S, of_keys>::deal(s, taken);
  launch(op, gradients<S, of_keys, drops>, blocks_for(deal), S::threads,
         sizeof(GradientMemory<S>) + 1024, s, deal, maps, statistics, padded,
         of_keys ? in[0] : in[1], of_keys ? dy : in[2], dx, dv);
}

}  // namespace

bool gpu::hopper::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q,
                                           const Tensor& k, const Tensor& v, const Tensor& y,
                                           const Tensor& lse, const Tensor& dy, Tensor& dq,
                                           Tensor& dk, Tensor& dv) {
  if (!fits(s, q.dtype()) || !has_barriers<gradients<OfKeys64, true, false>>(op)) return false;
  const auto in = attention_parts<bf16>(s, q, k, v);
  const auto dx = attention_parts<bf16>(s, dq, dk, dv);
  const bf16* const upstream = dy.data<bf16>();
  const std::int64_t padded = divide_up<std::int64_t>(s.length_q, 128) * 128;
  const std::int64_t rows = s.batch * s.heads * padded;
  Tensor scratch = empty({2, rows}, lse.options());
  const Statistics<float> own{scratch.data<float>(), scratch.data<float>() + rows};
  const Statistics<const float> statistics{own.lse, own.d};
  Tensor counters = empty({2}, {Dtype::i32, lse.device()});
  int* const taken = counters.data<std::int32_t>();  // of each of the kernels that follow
  const auto summarize_by = [&]<int lanes_a_row>() {
    launch(op, summarize<lanes_a_row>,
           dim3(static_cast<unsigned>(rows * lanes_a_row / statistics_threads)), statistics_threads,
           0, s, padded, y.data<bf16>(), upstream, lse.data<float>(), own, taken);
  };
  s.head_dim <= 64 ? summarize_by.template operator()<8>() : summarize_by.template operator()<16>();
  const auto with = [&](auto of_q, auto of_k, auto drops) {
    launch_gradients<decltype(of_q), false, drops>(s, in, upstream, statistics, padded, taken,
                                                   dx[0], nullptr);
    launch_gradients<decltype(of_k), true, drops>(s, in, upstream, statistics, padded, taken + 1,
                                                  dx[1], dx[2]);
  };
  attention::with_dropout(s, [&](auto drops) {
    if (s.head_dim <= 64)
      with(OfQueries64{}, OfKeys64{}, drops);
    else
      with(OfQueries128{}, OfKeys128{}, drops);
  });
  return true;
}

}  // namespace ebb
