#include "ebb/ops/attention/flash_attention.h"

namespace ebb {
namespace {

constexpr const char* op = "flash_attention";

AttentionDropout attention_dropout(const FlashAttentionOptions& o) {
  require(0 <= o.dropout && o.dropout < 1, Kind::value, op, "bad dropout", o.dropout, "[0, 1)");
  const double steps = std::min(std::round(o.dropout * 0x1p32), 0x1p32 - 1);
  if (steps == 0) return {};
  return {o.stream ? *o.stream : default_generator().next(), static_cast<std::uint32_t>(steps),
          0x1p32 / (0x1p32 - steps)};
}

FlashAttentionSize attention_size(const Tensor& q, const Tensor& k, bool packed,
                                  const FlashAttentionOptions& o) {
  const std::int64_t heads = q.size(-2), head_dim = q.size(-1);
  require(head_dim > 0, Kind::shape, op, "heads without elements", q.shape(), "head_dim 1 or more");
  require(!q.device().is_cuda() || head_dim <= 256, Kind::limit, op,
          "head_dim is too large for the GPU", head_dim, "at most 256");
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
  require(std::isfinite(scale), Kind::value, op, "scale must be finite", scale, "a number");
  const std::int64_t row = (packed ? 3 : 1) * heads * head_dim;
  return {q.size(0),   q.size(1), k.size(1),           heads, head_dim, row,
          o.is_causal, scale,     attention_dropout(o)};
}

void check(const char* name, const Tensor& x, const Tensor& q) {
  require_alike(op, "q", q, name, x);
  require(x.rank() == 4, Kind::shape, op, text(name, " has the wrong rank"), x.shape(),
          "[batch,length,heads,head_dim]");
  require(x.size(0) == q.size(0) && x.size(2) == q.size(2) && x.size(3) == q.size(3), Kind::shape,
          op, text("q ", q.shape(), " and ", name, " do not fit"), x.shape(),
          text('[', q.size(0), ",length,", q.size(2), ',', q.size(3), ']'));
}

struct Result {
  Tensor y, lse;
};

// k and v are undefined where q holds all three.
Result forward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k, const Tensor& v) {
  Tensor y = empty({s.batch, s.length_q, s.heads, s.head_dim}, q.options());
  Tensor lse = empty({s.batch, s.heads, s.length_q},
                     {q.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, q.device()});
  run<cpu::flash_attention, gpu::flash_attention>(q.device(), s, q, k, v, y, lse);
  return {y, lse};
}

}  // namespace

Tensor flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       FlashAttentionOptions options) {
  require_floating(op, "q", q);
  check("q", q, q);
  check("k", k, q);
  check("v", v, q);
  require(v.size(1) == k.size(1), Kind::shape, op, text("k ", k.shape(), " and v differ in length"),
          v.shape(), k.shape());
  const FlashAttentionSize s = attention_size(q, k, false, options);
  const Result f = forward(s, q, k, v);
  return record(op, f.y, {q, k, v},
                [s, q = Saved(q), k = Saved(k), v = Saved(v), y = Saved(f.y),
                 lse = f.lse](const Tensor& dy) -> Gradients {
                  Tensor dq = empty_like(q), dk = empty_like(k), dv = empty_like(v);
                  run<cpu::flash_attention_backward, gpu::flash_attention_backward>(
                      dy.device(), s, q.get(), k.get(), v.get(), y.get(), lse, dy, dq, dk, dv);
                  return {dq, dk, dv};
                });
}

Tensor flash_attention(const Tensor& qkv, FlashAttentionOptions options) {
  require_floating(op, "qkv", qkv);
  require(qkv.rank() == 5 && qkv.size(2) == 3, Kind::shape, op, "qkv has the wrong shape",
          qkv.shape(), "[batch,length,3,heads,head_dim]");
  const FlashAttentionSize s = attention_size(qkv, qkv, true, options);
  const Result f = forward(s, qkv, {}, {});
  return record(op, f.y, {qkv},
                [s, qkv = Saved(qkv), y = Saved(f.y), lse = f.lse](const Tensor& dy) -> Gradients {
                  Tensor dqkv = empty_like(qkv), none;
                  run<cpu::flash_attention_backward, gpu::flash_attention_backward>(
                      dy.device(), s, qkv.get(), none, none, y.get(), lse, dy, dqkv, none, none);
                  return {dqkv};
                });
}

}  // namespace ebb
