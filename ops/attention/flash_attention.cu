// Which kernels run, of three tiers (tiers.h), the first that can:
//
//   hopper_*.cu   bf16 on Hopper, by wgmma
//   tf32_*.cu     f32 on Hopper, by wgmma of TF32; what odd numbers reach is left to the next
//   core_*.cu     everything else, on every GPU
//
// All do what flash_attention.h says.
#include <limits>

#include "ebb/ops/attention/tiers.h"
#include "ebb/ops/rows.cuh"

namespace ebb {
namespace {

using namespace gpu;

constexpr const char* op = "flash_attention";

// Statistics (heads.cuh) of each [sequence, position, head], to [sequence, head, position]: the
// lse, and D = Σ dy∘y. The last position of a head fills up what is beyond the end.
template <class T>
struct Summarize {
  using V = Compute<T>;
  static constexpr V infinity = std::numeric_limits<V>::infinity();
  std::int64_t length, padded, heads;
  V unit;
  const V* from;
  V *lse, *d;

  template <class Row>
  __device__ void operator()(Row& row) const {
    const V dot = row.sum([](auto, auto y, auto dy) { return y * dy; });
    if (!row.leader()) return;
    const std::int64_t position = row.index() / heads, i = position % length;
    const std::int64_t line = position / length * heads + row.index() % heads;
    const V own = from[line * length + i];
    lse[line * padded + i] = own == -infinity ? infinity : own * unit;
    d[line * padded + i] = dot;
    for (std::int64_t beyond = length; i == length - 1 && beyond < padded; ++beyond) {
      lse[line * padded + beyond] = infinity;
      d[line * padded + beyond] = 0;
    }
  }
};

}  // namespace

void gpu::flash_attention(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                          const Tensor& v, Tensor& y, Tensor& lse) {
  if (hopper::flash_attention(s, q, k, v, y, lse)) return;
  const Tensor odd = hopper::flash_attention_tf32(s, q, k, v, y, lse);
  attention::forward(s, odd, q, k, v, y, lse);
}

void gpu::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& y, const Tensor& lse,
                                   const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv) {
  if (hopper::flash_attention_backward(s, q, k, v, y, lse, dy, dq, dk, dv)) return;
  const Tensor statistics = attention::statistics(s, y, lse, dy, 1);
  const Tensor odd = hopper::flash_attention_tf32_backward(s, q, k, v, statistics, dy, dq, dk, dv);
  attention::backward(s, odd, q, k, v, statistics, dy, dq, dk, dv);
}

Tensor gpu::attention::statistics(const FlashAttentionSize& s, const Tensor& y, const Tensor& lse,
                                  const Tensor& dy, double unit) {
  const std::int64_t padded = divide_up<std::int64_t>(s.length_q, 128) * 128;
  const std::int64_t lines = s.batch * s.heads;
  Tensor statistics = empty({2, lines, padded}, lse.options());
  visit<float, double, bf16>(y.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using V = Compute<T>;
    V* const to = statistics.data<V>();
    stream_rows<T>(op,
                   Summarize<T>{s.length_q, padded, s.heads, static_cast<V>(unit), lse.data<V>(),
                                to, to + lines * padded},
                   RowLayout{lines * s.length_q, s.head_dim}, y.data<T>(), dy.data<T>());
  });
  return statistics;
}

}  // namespace ebb
