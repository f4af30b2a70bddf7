#include "ebb/nn/attention.h"

#include <cmath>
#include <limits>

#include "ebb/core/autograd.h"
#include "ebb/core/error.h"
#include "ebb/ops/attention/flash_attention.h"
#include "ebb/ops/elementwise/arithmetic.h"
#include "ebb/ops/linalg/matmul.h"
#include "ebb/ops/reduction/softmax.h"
#include "ebb/ops/shape/concat.h"
#include "ebb/ops/shape/permute.h"
#include "ebb/ops/shape/reshape.h"
#include "ebb/ops/shape/slice.h"

namespace ebb::nn {
namespace {

constexpr const char* name = "MultiHeadAttention";

// Queries, keys and values of a packed tensor, each [batch, length, heads, head_dim].
struct Unpacked {
  Tensor q, k, v;
  explicit Unpacked(const Tensor& packed)
      : q(part(packed, 0)), k(part(packed, 1)), v(part(packed, 2)) {}
  static Tensor part(const Tensor& packed, std::int64_t i) {
    return reshape(slice(packed, 2, i, i + 1),
                   {packed.size(0), packed.size(1), packed.size(3), packed.size(4)});
  }
};

// [batch, length, heads, head_dim] → [batch, length, width], heads side by side.
Tensor joined(const Tensor& y) { return reshape(y, {y.size(0), y.size(1), y.size(2) * y.size(3)}); }

// 0 up to the diagonal, −∞ after it: what no position sees.
Tensor future(std::int64_t length, TensorOptions options) {
  std::vector<float> mask(static_cast<size_t>(length * length));
  for (std::int64_t q = 0; q < length; ++q)
    for (std::int64_t k = q + 1; k < length; ++k)
      mask[static_cast<size_t>(q * length + k)] = -std::numeric_limits<float>::infinity();
  return tensor(mask, {length, length}).to(options.dtype).to(options.device);
}

std::int64_t checked_width(std::int64_t width, std::int64_t heads,
                           const MultiHeadAttentionOptions& o) {
  require(width >= 1 && heads >= 1, Kind::value, name, "bad sizes",
          text("width ", width, ", ", heads, " heads"), "1 or more");
  require(width % heads == 0, Kind::value, name, "heads must divide the width",
          text(heads, " heads of ", width), "a divisor");
  require(!o.rotary || width / heads % 2 == 0, Kind::value, name,
          "rotary positions turn pairs, and head_dim is odd", width / heads, "an even head_dim");
  require(0 <= o.dropout && o.dropout < 1, Kind::value, name, "bad dropout", o.dropout, "[0, 1)");
  return width;
}

}  // namespace

MultiHeadAttention::MultiHeadAttention(std::int64_t width, std::int64_t heads,
                                       MultiHeadAttentionOptions options)
    : qkv(checked_width(width, heads, options), 3 * width, options.bias),
      proj(width, width, options.bias),
      heads_(heads),
      options_(options) {}

Tensor MultiHeadAttention::packed(const Tensor& x, std::int64_t first) {
  require(x.rank() == 3, Kind::shape, name, "x has the wrong rank", x.shape(),
          "[batch,length,width]");
  const std::int64_t head_dim = proj.weight.size(0) / heads_;
  const Tensor y = reshape(qkv(x), {x.size(0), x.size(1), 3, heads_, head_dim});
  return options_.rotary ? rotary(y, {.first = first}) : y;
}

Tensor MultiHeadAttention::attended(const Tensor& x) {
  return joined(
      flash_attention(packed(x, 0), {.is_causal = options_.causal, .dropout = dropout()}));
}

Tensor MultiHeadAttention::forward(const Tensor& x) { return proj(attended(x)); }

Tensor MultiHeadAttention::onto(const Tensor& residual, const Tensor& x) {
  return proj.onto(residual, attended(x));
}

Tensor MultiHeadAttention::forward(const Tensor& x, KeysValues& seen) {
  const std::int64_t first = seen.positions();
  require(options_.causal, Kind::value, name, "what has been seen does not change only when causal",
          "causal = false", "causal = true");
  require(first == 0 || x.size(1) == 1, Kind::value, name,
          "several positions at once after the first", x.size(1), "1");
  const Unpacked u(packed(x, first));
  seen.keys = first ? concat({seen.keys, u.k}, 1) : u.k;
  seen.values = first ? concat({seen.values, u.v}, 1) : u.v;
  return proj(joined(flash_attention(u.q, seen.keys, seen.values,
                                     {.is_causal = first == 0, .dropout = dropout()})));
}

Tensor MultiHeadAttention::maps(const Tensor& x) {
  const NoGrad guard;
  const Unpacked u(packed(x, 0));
  const double scale = 1 / std::sqrt(static_cast<double>(u.q.size(-1)));
  const Tensor q = permute(u.q, {0, 2, 1, 3}), k = permute(u.k, {0, 2, 1, 3});
  Tensor scores = matmul(q, k, {.transpose_b = true}) * scale;
  if (options_.causal) scores = scores + future(x.size(1), x.options());
  return softmax(scores);
}

}  // namespace ebb::nn
