// The transformer's formulas once more, one number at a time in double: what nn::Transformer is
// held against.
#pragma once
#include <map>

#include "ebb/nn/transformer.h"
#include "twins.h"

namespace ebb::test {

class SlowTransformer {
 public:
  using Vector = std::vector<double>;
  using Rows = std::vector<Vector>;  // of one sequence

  SlowTransformer(const nn::TransformerOptions& options, nn::Transformer& model) : o_(options) {
    for (const auto& [name, t] : model.state()) weights_[name] = {values(t), t.size(-1)};
  }

  // Of one sequence, [length][vocabulary].
  Rows logits(const std::vector<std::int32_t>& tokens) const {
    Rows x;
    for (size_t t = 0; t < tokens.size(); ++t) {
      Vector row(width());
      for (size_t c = 0; c < width(); ++c) {
        row[c] = at("tok.weight", static_cast<size_t>(tokens[t]), c);
        if (o_.positions == nn::Positions::learned) row[c] += at("pos.weight", t, c);
      }
      x.push_back(row);
    }
    for (std::int64_t i = 0; i < o_.layers; ++i) {
      const std::string block = "blocks." + std::to_string(i);
      add(x, attention(block + ".attention", normalized(block + ".norm1", x)));
      add(x, feed_forward(block + ".feed_forward", normalized(block + ".norm2", x)));
    }
    return product(o_.tied_head ? "tok" : "head", normalized("norm", x));
  }

 private:
  struct Weight {
    Vector v;
    std::int64_t columns;
  };

  size_t width() const { return static_cast<size_t>(o_.width); }
  double at(const std::string& name, size_t row, size_t column) const {
    const Weight& w = weights_.at(name);
    return w.v[row * static_cast<size_t>(w.columns) + column];
  }

  static void add(Rows& x, const Rows& y) {
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t c = 0; c < x[t].size(); ++c) x[t][c] += y[t][c];
  }

  Rows product(const std::string& name, const Rows& x) const {
    const Weight& w = weights_.at(name + ".weight");
    const auto bias = weights_.find(name + ".bias");
    Rows y;
    for (const Vector& row : x) {
      Vector out(w.v.size() / row.size());
      for (size_t o = 0; o < out.size(); ++o) {
        out[o] = bias == weights_.end() ? 0 : bias->second.v[o];
        for (size_t i = 0; i < row.size(); ++i) out[o] += row[i] * w.v[o * row.size() + i];
      }
      y.push_back(out);
    }
    return y;
  }

  Rows normalized(const std::string& name, Rows x) const {
    const bool rms = o_.norm == nn::Norm::rms;
    for (Vector& row : x) {
      double mean = 0, square = 0;
      for (const double v : row) mean += v / double(row.size());
      if (rms) mean = 0;
      for (const double v : row) square += (v - mean) * (v - mean) / double(row.size());
      for (size_t c = 0; c < row.size(); ++c) {
        row[c] = (row[c] - mean) / std::sqrt(square + (rms ? 1e-6 : 1e-5));
        row[c] *= at(name + ".weight", 0, c);
        if (weights_.contains(name + ".bias")) row[c] += at(name + ".bias", 0, c);
      }
    }
    return x;
  }

  Rows feed_forward(const std::string& name, const Rows& x) const {
    Rows h = product(name + ".up", x);
    const bool gated = o_.feed_forward == nn::FeedForwardKind::swiglu;
    const Rows gate = gated ? product(name + ".gate", x) : h;
    for (size_t t = 0; t < h.size(); ++t)
      for (size_t c = 0; c < h[t].size(); ++c) {
        const double u = h[t][c], g = gate[t][c];
        const double inner = std::sqrt(2 / M_PI) * (u + 0.044715 * u * u * u);
        h[t][c] = gated ? g / (1 + std::exp(-g)) * u : u / 2 * (1 + std::tanh(inner));
      }
    return product(name + ".down", h);
  }

  // Element i of a query or key at position t: rotated with its partner half a head away.
  double turned(const Vector& row, size_t head_start, size_t i, size_t t) const {
    if (o_.positions == nn::Positions::learned) return row[head_start + i];
    const size_t d = width() / static_cast<size_t>(o_.heads), half = d / 2;
    const double angle = double(t) * std::pow(10000, -2.0 * double(i % half) / double(d));
    const double own = row[head_start + i], other = row[head_start + (i + half) % d];
    return own * std::cos(angle) + (i < half ? -other : other) * std::sin(angle);
  }

  Rows attention(const std::string& name, const Rows& x) const {
    const Rows qkv = product(name + ".qkv", x);
    const size_t d = width() / static_cast<size_t>(o_.heads);
    Rows y(x.size(), Vector(width()));
    for (size_t start = 0; start < width(); start += d)
      for (size_t t = 0; t < x.size(); ++t) {
        Vector weight(t + 1);
        double sum = 0;
        for (size_t s = 0; s <= t; ++s) {
          double score = 0;
          for (size_t i = 0; i < d; ++i)
            score += turned(qkv[t], start, i, t) * turned(qkv[s], width() + start, i, s);
          weight[s] = std::exp(score / std::sqrt(double(d)));
          sum += weight[s];
        }
        for (size_t s = 0; s <= t; ++s)
          for (size_t i = 0; i < d; ++i)
            y[t][start + i] += weight[s] / sum * qkv[s][2 * width() + start + i];
      }
    return product(name + ".proj", y);
  }

  nn::TransformerOptions o_;
  std::map<std::string, Weight> weights_;
};

}  // namespace ebb::test
