// What the tests of flash_attention share: inputs, and the definition in plain loops.
#pragma once
#include "twins.h"

namespace ebb::test {

inline constexpr double inf = INFINITY;

inline Function f(FlashAttentionOptions o = {}) {
  return [o](const Tensors& in) {
    return in.size() == 1 ? flash_attention(in[0], o) : flash_attention(in[0], in[1], in[2], o);
  };
}

using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;  // lengths of q and k

struct Sizes {
  std::int64_t batch, length_q, length_k, heads, head_dim;
  Shape q() const { return {batch, length_q, heads, head_dim}; }
  Shape k() const { return {batch, length_k, heads, head_dim}; }
};

inline Tensors inputs(const Sizes& s, std::uint64_t seed, Dtype dtype = Dtype::f64,
                      double scale = 1) {
  return {randn(s.q(), seed, dtype, cpu_device, scale),
          randn(s.k(), seed + 1, dtype, cpu_device, scale), randn(s.k(), seed + 2, dtype)};
}

// [batch,length,3,heads,head_dim] of three [batch,length,heads,head_dim].
inline Tensor pack(const Tensors& parts) {
  const Shape& s = parts[0].shape();
  Tensors views;
  for (const Tensor& x : parts) views.push_back(reshape(x, {s[0], s[1], 1, s[2], s[3]}));
  return concat(views, 2);
}
inline Tensor part(const Tensor& packed, std::int64_t which) {
  const Shape& s = packed.shape();
  return reshape(slice(packed, 2, which, which + 1), {s[0], s[1], s[3], s[4]});
}

// The mask that flash_attention.h describes, one weight at a time.
struct AttentionMask {
  double p;
  Stream stream;
  std::int64_t length_q, length_k;

  double threshold() const { return std::round(p * 0x1p32); }
  double scale() const { return 1 / (1 - threshold() * 0x1p-32); }
  bool keeps(std::int64_t head, std::int64_t i, std::int64_t j) const {
    const std::int64_t down = (length_q + 15) / 16, across = (length_k + 15) / 16;
    const std::int64_t tile = (head * down + i / 16) * across + j / 16;
    const std::int64_t block = 16 * tile + i % 8 / 2 * 4 + j % 8 / 2;
    const Philox words = philox(stream.seed, std::uint64_t(block), stream.index);
    const std::uint64_t word = words.v[i % 2 * 2 + j % 2];
    const std::int64_t turn = i % 16 / 8 * 16 + j % 16 / 8 * 8;
    return double((word << 32 | word) >> turn & 0xffffffffu) >= threshold();
  }
};

// The definition in plain loops, one head at a time: y, dq, dk and dv.
struct Reference {
  const Sizes s;
  const FlashAttentionOptions o;
  const double scale = o.scale.value_or(1 / std::sqrt(double(s.head_dim)));
  const AttentionMask mask{o.dropout, o.stream.value_or(Stream{}), s.length_q, s.length_k};
  const std::vector<double> q, k, v, dy;
  std::vector<double> y = std::vector<double>(q.size());
  std::vector<double> dq = y;
  std::vector<double> dk = std::vector<double>(k.size());
  std::vector<double> dv = dk;

  Reference(const Sizes& sizes, const Tensors& in, const Tensor& upstream,
            FlashAttentionOptions opt)
      : s(sizes),
        o(opt),
        q(values(in[0])),
        k(values(in[1])),
        v(values(in[2])),
        dy(values(upstream)) {
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t i = 0; i < s.length_q; ++i) row(b, h, i);
  }

  size_t at(std::int64_t b, std::int64_t length, std::int64_t i, std::int64_t h) const {
    return size_t(((b * length + i) * s.heads + h) * s.head_dim);
  }

  void row(std::int64_t b, std::int64_t h, std::int64_t i) {
    const size_t d = size_t(s.head_dim), own = at(b, s.length_q, i, h);
    const std::int64_t keys = o.is_causal ? std::min(i + 1, s.length_k) : s.length_k;
    std::vector<double> p, dp, kept;
    double top = -inf, sum = 0, mean = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      const size_t key = at(b, s.length_k, j, h);
      double score = 0, slope = 0;
      for (size_t c = 0; c < d; ++c) {
        score += q[own + c] * k[key + c];
        slope += dy[own + c] * v[key + c];
      }
      p.push_back(scale * score);
      kept.push_back(mask.keeps(b * s.heads + h, i, j) ? mask.scale() : 0);
      dp.push_back(slope * kept.back());
      top = std::max(top, p.back());
    }
    for (double& x : p) sum += x = std::exp(x - top);
    for (size_t j = 0; j < p.size(); ++j) mean += (p[j] /= sum) * dp[j];
    for (size_t j = 0; j < p.size(); ++j) {
      const size_t key = at(b, s.length_k, std::int64_t(j), h);
      const double ds = scale * p[j] * (dp[j] - mean);
      for (size_t c = 0; c < d; ++c) {
        y[own + c] += p[j] * kept[j] * v[key + c];
        dq[own + c] += ds * k[key + c];
        dk[key + c] += ds * q[own + c];
        dv[key + c] += p[j] * kept[j] * dy[own + c];
      }
    }
  }
};

// Each score is a sum of head_dim products, of which Σ|ab| · scale is about 0.64 √head_dim for
// normal numbers; a relative error in P is an absolute one there, and dropout divides P. Gradients
// have another such sum, dy vᵀ, as a factor, which scale brings down again.
inline double absolute_error(std::int64_t head_dim, double dropout) {
  return 1e-7 + long_sum * (1 + 0.64 * std::sqrt(double(head_dim))) / (1 - dropout);
}
inline Tolerance value_tolerance(std::int64_t head_dim, double dropout = 0) {
  return {absolute_error(head_dim, dropout), 0};
}
inline Tolerance gradient_tolerance(std::int64_t head_dim, double dropout = 0) {
  return {absolute_error(head_dim, dropout), long_sum, true};
}

// f(o) of the inputs in a dtype, on a device, separate or packed, against the definition.
struct DefinitionCheck {
  Tensors in;
  Tensor dy;
  FlashAttentionOptions o;
  Reference expected;
  Tolerance of_y, of_gradient;

  void operator()(Dtype dtype, Device device, bool packed) const {
    Tensors there;
    for (const Tensor& x : in) there.push_back(leaf(x.to(dtype).clone().to(device)));
    if (packed) there = {leaf(pack(there).detach())};
    const Tensor y = f(o)(there);
    y.backward(dy.to(dtype).to(device));
    const auto gradient = [&](int i) {
      return packed ? part(there[0].grad(), i) : there[size_t(i)].grad();
    };
    std::ostringstream what;
    what << in[0] << in[1] << ' ' << dtype << ' ' << device << (packed ? " packed " : " ")
         << (o.is_causal ? "causal " : "") << "dropout " << o.dropout << ' ';
    const Shape &q = in[0].shape(), &k = in[1].shape();
    check_close(y, tensor(expected.y, q), of_y, what.str() + "y");
    check_close(gradient(0), tensor(expected.dq, q), of_gradient, what.str() + "dq");
    check_close(gradient(1), tensor(expected.dk, k), of_gradient, what.str() + "dk");
    check_close(gradient(2), tensor(expected.dv, k), of_gradient, what.str() + "dv");
  }
};

inline void check_f32_definition(const Sizes& s, FlashAttentionOptions o, bool packed,
                                 std::uint64_t seed = 1) {
  const Tensors in = inputs(s, seed, Dtype::f32);
  const Tensor dy = randn(s.q(), seed + 3, Dtype::f32);
  const DefinitionCheck check{in,
                              dy,
                              o,
                              {s, in, dy, o},
                              value_tolerance(s.head_dim, o.dropout),
                              gradient_tolerance(s.head_dim, o.dropout)};
  for (const Device device : devices()) check(Dtype::f32, device, packed);
}

// Separate in f64, and in f32, packed where that is possible.
inline void check_definition(const Sizes& s, FlashAttentionOptions o, std::uint64_t seed = 1) {
  const Tensors in = inputs(s, seed, Dtype::f32);
  const Tensor dy = randn(s.q(), seed + 3, Dtype::f32);
  const Tolerance close{1e-13, 1e-12, true};
  const DefinitionCheck check{in, dy, o, {s, in, dy, o}, close, close};
  for (const Device device : devices()) check(Dtype::f64, device, false);
  check_f32_definition(s, o, s.length_q == s.length_k, seed);
}

// The weights P and dS are rounded to bf16 for the tensor cores, and so are y and the gradients:
// 2⁻⁹ of what they weigh, at most |v| ~ 4, and of sums of up to log(length) times as much.
inline void check_bf16_definition(const Sizes& s, FlashAttentionOptions o, bool packed) {
  const Tensors in = inputs(s, 41, Dtype::bf16);
  const Tensor dy = randn(s.q(), 44, Dtype::bf16);
  const double larger = 1 / (1 - o.dropout);
  const DefinitionCheck check{
      in, dy, o, {s, in, dy, o}, {larger / 128, 1.0 / 255}, {larger / 64, 1.0 / 128, true}};
  for (const Device device : devices()) check(Dtype::bf16, device, packed);
}

}  // namespace ebb::test
