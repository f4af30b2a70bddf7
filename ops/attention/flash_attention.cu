// Which kernels run, of three tiers (tiers.h), the first that can:
//
//   hopper_*.cu   bf16 on Hopper, by wgmma
//   tf32_*.cu     f32 on Hopper, by wgmma of TF32; what odd numbers reach is left to the next
//   core_*.cu     everything else, on every GPU
//
// All do what flash_attention.h says.
#include "ebb/ops/attention/tiers.h"
#include "ebb/ops/rows.cuh"

namespace ebb {
namespace {

using namespace gpu;

constexpr const char* op = "flash_attention";

// D = Σ dy∘y of each [sequence, position, head], to [sequence, head, position].
template <class T>
struct UpstreamDots {
  std::int64_t length, heads;
  Compute<T>* d;
  template <class Row>
  __device__ void operator()(Row& row) const {
    const auto dot = row.sum([](auto, auto y, auto dy) { return y * dy; });
    if (!row.leader()) return;
    const std::int64_t position = row.index() / heads;
    d[(position / length * heads + row.index() % heads) * length + position % length] = dot;
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
  Tensor d = empty(lse.shape(), lse.options());
  visit<float, double, bf16>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    stream_rows<T>(op, UpstreamDots<T>{s.length_q, s.heads, d.data<Compute<T>>()},
                   RowLayout{s.batch * s.length_q * s.heads, s.head_dim}, y.data<T>(),
                   dy.data<T>());
  });
  const Tensor odd = hopper::flash_attention_tf32_backward(s, q, k, v, lse, d, dy, dq, dk, dv);
  attention::backward(s, odd, q, k, v, lse, d, dy, dq, dk, dv);
}

}  // namespace ebb
