// Backward in float32: S and dP, what P and dS are made of, then the products with these, which are
// added to totals. As registers allow, one kernel makes dk and dv, or one each.
#include "ebb/ops/attention/tf32.cuh"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::hopper;

// What a kernel makes for its own rows.
template <bool of_keys_, bool x_, bool v_>
struct Makes {
  static constexpr bool of_keys = of_keys_;
  static constexpr bool x = x_;  // dq or dk
  static constexpr bool v = v_;  // dv
  static constexpr int forms = 1 + 2 * x + v;
};

constexpr int statistics_stages = 2;
template <class S, class G>
constexpr int stages_of = static_cast<int>((226 * 1024 - (1 + G::x) * sizeof(OwnRows<S>) -
                                            G::of_keys * statistics_stages * sizeof(Statistics)) /
                                           sizeof(typename S::Half));
template <class S, class G>
struct Tf32Memory {
  Halves<S, stages_of<S, G>> halves;
  OwnRows<S> own[1 + G::x];
  alignas(16) Statistics statistics[G::of_keys ? statistics_stages : 1];
};

// The packed others in the order of their use, and what belongs to queries.
struct PackedInputs {
  const void *x, *z, *turned_v, *turned_x;
  const Statistics* statistics;
};
struct OwnInputs {
  const float *x, *z;
};
struct Outputs {
  float *x, *v;
};

template <class S, class G>
struct Feeds {
  Feed<S, stages_of<S, G>> others;
  Ring<statistics_stages>& statistics;
  int n = 0;  // tiles before

  __device__ void send(const FlashAttentionSize& s, const Place<S, G::of_keys>& at,
                       const PackedInputs& in, Statistics* to) {
    const std::int64_t length = G::of_keys ? s.length_q : s.length_k;
    const std::int64_t first = at.line * tiles_of(length);
    for (int t = at.begin; t < at.end; ++t, ++n) {
      if constexpr (G::of_keys) {
        Barrier& full = statistics.room(n);
        full.arrive_expecting(sizeof(Statistics));
        copy(&to[n % statistics_stages], in.statistics + first + t, sizeof(Statistics), full);
      }
      others.send_tile(in.x, first + t);
      if constexpr (G::x) others.send_tile(in.z, first + t);
      if constexpr (G::v) others.send_tile(in.turned_v, first + t);
      if constexpr (G::x) others.send_tile(in.turned_x, first + t);
    }
  }
};

// The lse and D of the thread's own queries.
template <class S>
struct OwnStatistics {
  float lse[2] = {infinity, infinity}, d[2] = {};
  __device__ OwnStatistics(const Statistics* statistics, std::int64_t length, std::int64_t line,
                           int first) {
    const std::int64_t tiles = tiles_of(length);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int own = first + row(r);
      if (own >= length) continue;
      const Statistics& of_tile = statistics[line * tiles + own / 64];
      lse[r] = of_tile.lse[own % 64];
      d[r] = of_tile.d[own % 64];
    }
  }
};

template <bool drops, class S, class G>
__device__ void gradients_of_rows(const FlashAttentionSize& s, const Place<S, G::of_keys>& at,
                                  Tf32Memory<S, G>& m, Feeds<S, G>& feeds, const OwnInputs& own,
                                  const Statistics* statistics, const Outputs& out) {
  constexpr bool of_keys = G::of_keys;
  const auto scale = static_cast<float>(s.scale);
  const float kept = drops ? static_cast<float>(s.dropout.scale) : 1.0f;
  const auto draws = drops ? attention::draws_of<of_keys>(s, at.line) : attention::Draws<of_keys>{};
  const std::int64_t length = of_keys ? s.length_k : s.length_q, step = s.heads * s.head_dim;
  m.own[0].load(at.rows_of(s, own.x, length, s.row, at.first));
  if constexpr (G::x)
    m.own[G::x].load(at.rows_of(s, own.z, length, of_keys ? s.row : step, at.first));
  const OwnStatistics<S> mine(statistics, of_keys ? 0 : s.length_q, at.line, at.first);
  float totals_x[G::x ? S::width / 2 : 1] = {}, totals_v[G::v ? S::width / 2 : 1] = {};

  for (int t = at.begin; t < at.end; ++t) {
    float x[32] = {}, z[32] = {};
    scores<S, of_keys>(x, m.own[0], feeds.others);
    if constexpr (G::x) scores<S, of_keys>(z, m.own[G::x], feeds.others);
    if constexpr (of_keys) feeds.statistics.wait(feeds.n);
    const Statistics& theirs = m.statistics[of_keys ? feeds.n % statistics_stages : 0];
    const auto slope = [&](int r, int c) {
      hopper::at(z, r, c) =
          hopper::at(x, r, c) * (hopper::at(z, r, c) - (of_keys ? theirs.d[col(c)] : mine.d[r]));
    };
    each_sum(x, [&](int r, int c, float& weight) {
      weight = weight_of(weight, scale, of_keys ? theirs.lse[col(c)] : mine.lse[r]);
      if constexpr (G::x && !drops) slope(r, c);
    });
    if constexpr (drops)
      draw<S::cols>(draws, at.first, t * S::cols, [&](int r, int c, unsigned bits) {
        const bool dropped = bits < s.dropout.threshold;
        if constexpr (G::x) {
          hopper::at(z, r, c) = dropped ? 0.0f : hopper::at(z, r, c) * kept;
          slope(r, c);
        }
        if (dropped) hopper::at(x, r, c) = 0;
      });
    if constexpr (of_keys) feeds.statistics.release(feeds.n++);
    if (!at.whole(t)) {
      const Sight sight = at.sight(t);
      each_sum(x, [&](int r, int c, float& weight) {
        if (!sight.sees(r, col(c))) weight = hopper::at(z, r, c) = 0;
      });
    }
    if constexpr (G::v) {
      float sums[S::width / 2] = {};
      weighted<S>(sums, x, feeds.others);
      each_sum(totals_v, [&](int r, int c, float& value) { value += hopper::at(sums, r, c); });
    }
    if constexpr (G::x) {
      float sums[S::width / 2] = {};
      weighted<S>(sums, z, feeds.others);
      each_sum(totals_x, [&](int r, int c, float& value) { value += hopper::at(sums, r, c); });
    }
  }

  if constexpr (G::x)
    store_sums(totals_x, {scale, scale}, at.rows_of(s, out.x, length, s.row, at.first));
  if constexpr (G::v)
    store_sums(totals_v, {kept, kept}, at.rows_of(s, out.v, length, s.row, at.first));
}

template <class S, class G, bool drops>
__global__ void __launch_bounds__(S::threads, 1)
    gradients_tf32(FlashAttentionSize s, Places places, PackedInputs in, OwnInputs own,
                   Outputs out) {
  if constexpr (has_wgmma) {
    __shared__ Ring<stages_of<S, G>> ring;
    __shared__ Ring<statistics_stages> of_statistics;
    extern __shared__ __align__(128) unsigned char memory[];
    auto& m = *reinterpret_cast<Tf32Memory<S, G>*>(memory);
    if (threadIdx.x == 0) {
      ring.init(1, S::workers);
      of_statistics.init(1, S::workers);
      show_barriers();
    }
    __syncthreads();
    Feeds<S, G> feeds{{m.halves, ring}, of_statistics};
    using At = Place<S, G::of_keys>;
    run_places<At, S>(
        s, places, [&](const At& at) { feeds.send(s, at, in, m.statistics); },
        [&](const At& at) { gradients_of_rows<drops>(s, at, m, feeds, own, in.statistics, out); });
  } else {
    __trap();
  }
}

template <class S, class G>
void launch_gradients(const FlashAttentionSize& s, const PackedInputs& in, const OwnInputs& own,
                      const Outputs& out) {
  const Places places = places_of<S, G::of_keys>(s, G::forms);
  attention::with_dropout(s, [&](auto drops) {
    launch(op, gradients_tf32<S, G, drops>, blocks_for(s, places), S::threads,
           sizeof(Tf32Memory<S, G>), s, places, in, own, out);
  });
}

using OfQueries = Makes<false, true, false>;

template <class S>
Tensor launch_of_queries(const FlashAttentionSize& s, const std::array<const float*, 3>& in,
                         const float* dy, const Tensor& lse, const Tensor& d,
                         Statistics* statistics, float* dq) {
  const std::int64_t tiles = 2 * (tiles_of(s.length_q) + tiles_of(s.length_k));
  Tensor odd = odd_room(s, tiles, lse);
  Tensor k = packed_room<S>(s, s.length_k, lse), turned_k = packed_room<S>(s, s.length_k, lse),
         v = packed_room<S>(s, s.length_k, lse);
  const std::int64_t step = s.heads * s.head_dim;
  launch_pack<S>(s,
                 Packings<4>{{{in[0], s.length_q, s.row, nullptr, nullptr},
                              {dy, s.length_q, step, nullptr, nullptr},
                              {in[1], s.length_k, s.row, k.data<float>(), turned_k.data<float>()},
                              {in[2], s.length_k, s.row, v.data<float>(), nullptr}},
                             odd_bits(odd),
                             statistics,
                             lse.data<float>(),
                             d.data<float>()});
  launch_gradients<S, OfQueries>(
      s, {k.data<float>(), v.data<float>(), nullptr, turned_k.data<float>(), statistics},
      {in[0], dy}, {dq, nullptr});
  return odd;
}

template <class S>
void launch_of_keys(const FlashAttentionSize& s, const std::array<const float*, 3>& in,
                    const float* dy, const Tensor& lse, const Statistics* statistics, float* dk,
                    float* dv) {
  const auto room = [&] { return packed_room<S>(s, s.length_q, lse); };
  Tensor q = room(), turned_q = room(), upstream = room(), turned_dy = room();
  launch_pack<S>(s,
                 Packings<2>{{{in[0], s.length_q, s.row, q.data<float>(), turned_q.data<float>()},
                              {dy, s.length_q, s.heads * s.head_dim, upstream.data<float>(),
                               turned_dy.data<float>()}},
                             nullptr});
  const PackedInputs others{q.data<float>(), upstream.data<float>(), turned_dy.data<float>(),
                            turned_q.data<float>(), statistics};
  const OwnInputs own{in[1], in[2]};
  const Outputs out{dk, dv};
  if constexpr (S::width <= 64) {
    launch_gradients<S, Makes<true, true, true>>(s, others, own, out);
  } else {
    launch_gradients<S, Makes<true, true, false>>(s, others, own, out);
    launch_gradients<S, Makes<true, false, true>>(s, others, own, out);
  }
}

}  // namespace

Tensor gpu::hopper::flash_attention_tf32_backward(const FlashAttentionSize& s, const Tensor& q,
                                                  const Tensor& k, const Tensor& v,
                                                  const Tensor& lse, const Tensor& d,
                                                  const Tensor& dy, Tensor& dq, Tensor& dk,
                                                  Tensor& dv) {
  using Smallest = Tf32Tiles<64, false>;
  if (!fits_tf32(s, q.dtype()) || !has_barriers<gradients_tf32<Smallest, OfQueries, false>>(op))
    return {};
  const auto in = attention_parts<float>(s, q, k, v);
  const auto dx = attention_parts<float>(s, dq, dk, dv);
  const float* const upstream = dy.data<float>();
  constexpr auto numbers = static_cast<std::int64_t>(sizeof(Statistics) / sizeof(float));
  Tensor room = empty({s.batch * s.heads * tiles_of(s.length_q), numbers}, lse.options());
  auto* const statistics = reinterpret_cast<Statistics*>(room.data<float>());
  Tensor odd;
  with_tf32_tiles(s.head_dim, [&](auto tiles) {
    using S = decltype(tiles);
    odd = launch_of_queries<S>(s, in, upstream, lse, d, statistics, dx[0]);
    launch_of_keys<S>(s, in, upstream, lse, statistics, dx[1], dx[2]);
  });
  return odd;
}

}  // namespace ebb
