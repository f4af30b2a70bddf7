// Forward on any GPU, by the core that fits (cores.cuh): a block owns some queries and meets the
// keys that they see, tile by tile.
#include "ebb/ops/attention/core_blocks.cuh"
#include "ebb/ops/attention/tiers.h"

namespace ebb {
namespace {

using namespace gpu;
using namespace gpu::attention;

template <class Core>
struct AttendMemory {
  typename Core::Own q;
  typename Core::Other k[Core::stages], v[Core::stages];
  typename Core::Scratch scratch;
};

// m, l and o of flash_attention.h.
template <class Core>
struct Softmax {
  using V = typename Core::V;
  static constexpr V infinity = std::numeric_limits<V>::infinity();
  V top[Core::own_rows];
  V total[Core::own_rows] = {};  // of this thread's columns
  typename Core::Sums sums = {};

  __device__ Softmax() {
#pragma unroll
    for (V& t : top) t = -infinity;
  }

  // x becomes the weights.
  __device__ void weigh(typename Core::X& x, V scale) {
#pragma unroll
    for (int r = 0; r < Core::own_rows; ++r) {
      V high = top[r];
#pragma unroll
      for (V value : x[r]) high = fmax(high, value);
      high = warp_reduce<Core::lanes>(high, [](V a, V b) { return fmax(a, b); });
      const V shift = high == -infinity ? V(0) : product(high, scale);
      const V shrink = Core::weight(top[r], scale, shift);
      top[r] = high;
      V sum = 0;
#pragma unroll
      for (V& value : x[r]) sum += value = Core::weight(value, scale, shift);
      total[r] = total[r] * shrink + sum;
#pragma unroll
      for (V& value : sums[r]) value *= shrink;
    }
  }
};

template <class Core, bool drops, class Scope>
__device__ void attend_rows(const FlashAttentionSize& s, const Place<Core::rows>& at,
                            const Scope& scope, bool aligned, const typename Core::T* q,
                            const typename Core::T* k, const typename Core::T* v,
                            typename Core::T* y, typename Core::V* lse) {
  using V = typename Core::V;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<AttendMemory<Core>*>(memory);
  const auto keys = rows_of(s, at.head, k, s.length_k, s.row, aligned);
  const auto values = rows_of(s, at.head, v, s.length_k, s.row, aligned);
  const std::int64_t end = s.is_causal ? min(at.first + Core::rows, s.length_k) : s.length_k;
  if (end > 0) load(m.q, rows_of(s, at.head, q, s.length_q, s.row, aligned).from(at.first));

  Softmax<Core> softmax;
  const Scale<V> scale(s.scale);
  const auto fetch = [&](int stage, std::int64_t j) {
    load(m.k[stage], keys.from(j));
    load(m.v[stage], values.from(j));
  };
  for_tiles<Core>(0, end, fetch, [&](int stage, std::int64_t j) {
    typename Core::X x = {};
    Core::scores(x, m.q, m.k[stage]);
    const Sight<Core, false> sight(s.is_causal, at.first, j, s.length_k);
    if (scale.sign != 1) each<Core>([&](int r, int c) { x[r][c] *= scale.sign; });
    if (!sight.whole()) {
      each<Core>([&](int r, int c) {
        if (sight.hides(r, c)) x[r][c] = -Softmax<Core>::infinity;
      });
    }
    softmax.weigh(x, scale.size * Core::unit);
    if constexpr (drops) {
      Core::draw(draws_of<false>(s, at.head), at.first, j, [&](int r, int c, unsigned bits) {
        if (bits < s.dropout.threshold) x[r][c] = 0;
      });
    }
    if (sight.diagonal())
      Core::add(softmax.sums, x, m.v[stage], m.scratch, sight);
    else
      Core::add(softmax.sums, x, m.v[stage], m.scratch, Everything{});
  });

#pragma unroll
  for (int r = 0; r < Core::own_rows; ++r) {
    V& total = softmax.total[r];
    total = warp_reduce<Core::lanes>(total, Sum{});
    const std::int64_t i = at.first + Core::row(r);
    if (attention::lane() % Core::lanes == 0 && i < s.length_q && scope.template row<false>(i))
      lse[at.head * s.length_q + i] = product(softmax.top[r], scale.size) + log(total);
  }
  const auto of_y = rows_of(s, at.head, y, s.length_q, s.heads * s.head_dim, aligned);
  const V kept = drops ? static_cast<V>(s.dropout.scale) : V(1);
  const auto factor = [&](int r) { return softmax.total[r] == 0 ? V(0) : kept / softmax.total[r]; };
  const auto takes = [&](int row) { return scope.template row<false>(at.first + row); };
  Core::store(softmax.sums, factor, of_y.from(at.first), takes, m.q);
}

template <class Core, bool drops, class Scope>
__global__ void __launch_bounds__(threads, 2)
    attend(FlashAttentionSize s, OddRows odd, bool aligned, const typename Core::T* q,
           const typename Core::T* k, const typename Core::T* v, typename Core::T* y,
           typename Core::V* lse) {
  each_place<Scope, Core::rows, false>(s, odd, [&](const auto& at, const Scope& scope) {
    attend_rows<Core, drops>(s, at, scope, aligned, q, k, v, y, lse);
  });
}

}  // namespace

void gpu::attention::forward(const FlashAttentionSize& s, const Tensor& odd_rows, const Tensor& q,
                             const Tensor& k, const Tensor& v, Tensor& y, Tensor& lse) {
  const OddRows odd(s, odd_rows);
  visit<float, double, bf16>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const auto in = attention_parts<T>(s, q, k, v);
    T* const out = y.data<T>();
    const bool aligned = s.head_dim % pack_size<T> == 0;
    with_cores<T>(s.head_dim, [&](auto core, auto) {
      using Core = decltype(core);
      with_dropout(s, [&](auto drops) {
        with_scope<Core>(odd, [&]<class Scope>() {
          launch(op, attend<Core, drops, Scope>, blocks_for(s, odd, s.length_q, Core::rows),
                 threads, memory_for<AttendMemory<Core>>(), s, odd, aligned, in[0], in[1], in[2],
                 out, lse.data<Compute<T>>());
        });
      });
    });
  });
}

}  // namespace ebb
