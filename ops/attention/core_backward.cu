// Backward on any GPU, by the core that fits (cores.cuh): a kernel whose blocks own queries makes
// dq, and one whose blocks own keys dk and dv.
#include "ebb/ops/attention/core_blocks.cuh"
#include "ebb/ops/attention/tiers.h"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::attention;

template <class T>
struct Inputs {
  const T *q, *k, *v, *dy;
  const Compute<T>*lse, *d;
};

// What belongs to a query.
template <class V>
struct Statistics {
  V lse, d;
  template <class T>
  __device__ Statistics(const Inputs<T>& in, std::int64_t length, std::int64_t head, std::int64_t i)
      : lse(i < length ? in.lse[head * length + i] : -std::numeric_limits<V>::infinity()),
        d(i < length ? in.d[head * length + i] : V(0)) {
    if (lse == -std::numeric_limits<V>::infinity()) lse = -lse;
  }
};

template <class Core>
struct GradientMemory {
  typename Core::Own own[2];
  typename Core::Other others[Core::stages][2];
  typename Core::V lse[Core::stages][Core::cols], d[Core::stages][Core::cols];
  typename Core::Scratch scratch;
};

template <class Core, bool of_keys, bool drops, class Scope>
__device__ void gradients_of_rows(const FlashAttentionSize& s, const Place<Core::rows>& at,
                                  const Scope& scope, bool aligned,
                                  const Inputs<typename Core::T>& in, typename Core::T* dx,
                                  typename Core::T* dv) {
  using V = typename Core::V;
  using Sums = typename Core::Sums;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<GradientMemory<Core>*>(memory);
  const std::int64_t length = of_keys ? s.length_k : s.length_q;
  const std::int64_t others = of_keys ? s.length_q : s.length_k;
  const auto queries = rows_of(s, at.head, in.q, s.length_q, s.row, aligned);
  const auto upstream = rows_of(s, at.head, in.dy, s.length_q, s.heads * s.head_dim, aligned);
  const auto keys = rows_of(s, at.head, in.k, s.length_k, s.row, aligned);
  const auto values = rows_of(s, at.head, in.v, s.length_k, s.row, aligned);
  const std::int64_t first = of_keys && s.is_causal ? at.first / Core::cols * Core::cols : 0;
  const std::int64_t end = !of_keys && s.is_causal ? min(at.first + Core::rows, others) : others;
  if (first < end) {
    load(m.own[0], (of_keys ? keys : queries).from(at.first));
    load(m.own[1], (of_keys ? values : upstream).from(at.first));
  }

  V lse[Core::own_rows], d[Core::own_rows];
#pragma unroll
  for (int r = 0; r < Core::own_rows && !of_keys; ++r) {
    const Statistics<V> own(in, s.length_q, at.head, at.first + Core::row(r));
    lse[r] = own.lse * Core::unit;
    d[r] = own.d;
  }
  const auto fetch = [&](int stage, std::int64_t j) {
    load(m.others[stage][0], (of_keys ? queries : keys).from(j));
    load(m.others[stage][1], (of_keys ? upstream : values).from(j));
    if (of_keys && threadIdx.x < Core::cols) {
      const Statistics<V> other(in, s.length_q, at.head, j + threadIdx.x);
      m.lse[stage][threadIdx.x] = other.lse * Core::unit;
      m.d[stage][threadIdx.x] = other.d;
    }
  };

  Sums sums_x = {}, sums_v = {};
  const auto scale = static_cast<V>(s.scale);
  const V kept = drops ? static_cast<V>(s.dropout.scale) : V(1);
  for_tiles<Core>(first, end, fetch, [&](int stage, std::int64_t j) {
    typename Core::X x = {}, z = {};
    auto& other = m.others[stage];
    Core::scores(x, m.own[0], other[0]);
    Core::scores(z, m.own[1], other[1]);
    const Sight<Core, of_keys> sight(s.is_causal, at.first, j, others);
    const auto differentiate = [&](int r, int c) {
      z[r][c] = x[r][c] * (z[r][c] - (of_keys ? m.d[stage][Core::col(c)] : d[r]));
    };
    each<Core>([&](int r, int c) {
      const V shift = of_keys ? m.lse[stage][Core::col(c)] : lse[r];
      x[r][c] = Core::weight(x[r][c], scale * Core::unit, shift);
      if constexpr (!drops) differentiate(r, c);
    });
    if constexpr (drops) {
      const auto draws = draws_of<of_keys>(s, at.head);
      Core::draw(draws, at.first, j, [&](int r, int c, unsigned bits) {
        const bool dropped = bits < s.dropout.threshold;
        z[r][c] = dropped ? V(0) : z[r][c] * kept;
        differentiate(r, c);
        if (dropped) x[r][c] = 0;
      });
    }
    if (!sight.whole()) {
      each<Core>([&](int r, int c) {
        if (sight.hides(r, c)) x[r][c] = z[r][c] = 0;
      });
    }
    const auto add = [&](const auto& sees) {
      if constexpr (of_keys) Core::add(sums_v, x, other[1], m.scratch, sees);
      Core::add(sums_x, z, other[0], m.scratch, sees);
    };
    if (sight.diagonal())
      add(sight);
    else
      add(Everything{});
  });

  const auto to = rows_of(s, at.head, dx, length, s.row, aligned).from(at.first);
  const auto takes = [&](int row) { return scope.template row<of_keys>(at.first + row); };
  Core::store(
      sums_x, [&](int) { return scale; }, to, takes, m.own[0]);
  if constexpr (of_keys) {
    const auto to_v = rows_of(s, at.head, dv, length, s.row, aligned).from(at.first);
    Core::store(
        sums_v, [&](int) { return kept; }, to_v, takes, m.own[1]);
  }
}

template <class Core, bool of_keys, bool drops, class Scope>
__global__ void __launch_bounds__(threads, 2)
    gradients(FlashAttentionSize s, OddRows odd, bool aligned, Inputs<typename Core::T> in,
              typename Core::T* dx, typename Core::T* dv) {
  each_place<Scope, Core::rows, of_keys>(s, odd, [&](const auto& at, const Scope& scope) {
    gradients_of_rows<Core, of_keys, drops>(s, at, scope, aligned, in, dx, dv);
  });
}

template <class Core, bool of_keys, bool drops, class T>
void launch_gradients(const FlashAttentionSize& s, const OddRows& odd, bool packed,
                      const Inputs<T>& in, T* dx, T* dv) {
  with_scope<Core>(odd, [&]<class Scope>() {
    launch(op, gradients<Core, of_keys, drops, Scope>,
           blocks_for(s, odd, of_keys ? s.length_k : s.length_q, Core::rows), threads,
           memory_for<GradientMemory<Core>>(), s, odd, packed, in, dx, dv);
  });
}

}  // namespace

void gpu::attention::backward(const FlashAttentionSize& s, const Tensor& odd_rows, const Tensor& q,
                              const Tensor& k, const Tensor& v, const Tensor& lse, const Tensor& d,
                              const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv) {
  const OddRows odd(s, odd_rows);
  visit<float, double, bf16>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using V = Compute<T>;
    const auto x = attention_parts<T>(s, q, k, v);
    const auto dx = attention_parts<T>(s, dq, dk, dv);
    const T* const upstream = dy.data<T>();
    const Inputs<T> in{x[0], x[1], x[2], upstream, lse.data<V>(), d.data<V>()};
    const bool aligned = s.head_dim % pack_size<T> == 0;
    with_cores<T>(s.head_dim, [&](auto, auto core) {
      using Core = decltype(core);
      with_dropout(s, [&](auto drops) {
        launch_gradients<Core, false, drops>(s, odd, aligned, in, dx[0], static_cast<T*>(nullptr));
        launch_gradients<Core, true, drops>(s, odd, aligned, in, dx[1], dx[2]);
      });
    });
  });
}

}  // namespace ebb
