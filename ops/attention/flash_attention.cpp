#include "ebb/ops/attention/flash_attention.h"

#include "ebb/core/parallel.h"
#include "ebb/ops/attention/blocks.h"

namespace ebb {
namespace {

constexpr const char* op = "flash_attention";

FlashAttentionSize attention_size(const Tensor& q, const Tensor& k, bool packed,
                                  const FlashAttentionOptions& o) {
  const std::int64_t heads = q.size(-2), head_dim = q.size(-1);
  require(head_dim > 0, Kind::shape, op, "heads without elements", q.shape(), "head_dim 1 or more");
  require(!q.device().is_cuda() || head_dim <= 256, Kind::limit, op,
          "head_dim is too large for the GPU", head_dim, "at most 256");
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
  require(std::isfinite(scale), Kind::value, op, "scale must be finite", scale, "a number");
  const std::int64_t row = (packed ? 3 : 1) * heads * head_dim;
  return {q.size(0), q.size(1), k.size(1), heads, head_dim, row, o.is_causal, scale};
}

void check(const char* name, const Tensor& x, const Tensor& q) {
  require_alike(op, "q", q, name, x);
  require(x.rank() == 4, Kind::shape, op, text(name, " has the wrong rank"), x.shape(),
          "[batch,length,heads,head_dim]");
  require(x.size(0) == q.size(0) && x.size(2) == q.size(2) && x.size(3) == q.size(3), Kind::shape,
          op, text("q ", q.shape(), " and ", name, " do not fit"), x.shape(),
          text('[', q.size(0), ",length,", q.size(2), ',', q.size(3), ']'));
}

struct Forward {
  Tensor y, lse;
};

// k and v are undefined where q holds all three.
Forward forward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k, const Tensor& v) {
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
  const Forward f = forward(s, q, k, v);
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
  const Forward f = forward(s, qkv, {}, {});
  return record(op, f.y, {qkv},
                [s, qkv = Saved(qkv), y = Saved(f.y), lse = f.lse](const Tensor& dy) -> Gradients {
                  Tensor dqkv = empty_like(qkv), none;
                  run<cpu::flash_attention_backward, gpu::flash_attention_backward>(
                      dy.device(), s, qkv.get(), none, none, y.get(), lse, dy, dqkv, none, none);
                  return {dqkv};
                });
}

namespace {

using cpu::Array;
using cpu::Block;
using cpu::copy_rows;
using cpu::copy_turned;
using cpu::group;
using cpu::lanes;
using cpu::load_up_to;
using cpu::multiply;
using cpu::round_up;
using cpu::Sees;
using cpu::Simd;
using cpu::Store;
using cpu::store_up_to;

constexpr std::int64_t tile = 64;    // keys, and backward also queries, of a block
constexpr std::int64_t chunk = 256;  // queries of a task forward: they share the copies of the keys

// Memory for blocks, kept by each thread.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t size) {
    thread_local Array<T> memory;
    if (memory.size() < size) memory.resize(size);
    next_ = memory.data();
  }
  T* take(std::int64_t n) { return std::exchange(next_, next_ + n); }
  Block<T> block(std::int64_t rows, std::int64_t step) { return {take(rows * step), step}; }

 private:
  T* next_;
};

// Zeros where a register reaches over the first n elements from c on.
template <class T>
Simd<T> zero_from(Simd<T> x, std::int64_t n, std::int64_t c) {
  if (c + lanes<T> <= n) return x;
  const auto place = Simd<T>::of(Eigen::internal::plset<cpu::Packet<T>>(T(c)));
  return select(place < Simd<T>(T(n)), x, Simd<T>(T(0)));
}

// How a group of queries, the first of them i, sees the keys j0 … j0 + n.
template <class T>
struct View {
  bool is_causal;
  std::int64_t i, j0, n;
  bool diagonal() const { return is_causal && i + 1 - j0 < n; }
  // of row r
  std::int64_t visible(int r) const {
    return is_causal ? std::clamp<std::int64_t>(i + r + 1 - j0, 0, n) : n;
  }
  std::int64_t common() const { return diagonal() ? i + 1 - j0 : n; }
  std::int64_t columns() const { return round_up(visible(group<T> - 1), lanes<T>); }
};

// Some queries of one head: the largest score so far, the sum of the exponentials and of what they
// weigh are kept for each, and scaled down when a larger score comes.
template <class T>
class Attend {
 public:
  Attend(const FlashAttentionSize& s, const T* q, const T* k, const T* v, T* y, T* lse)
      : s_(s), in_{q, k, v}, y_(y), lse_(lse) {}

  void operator()(std::int64_t head, std::int64_t first, std::int64_t n) {
    const std::int64_t b = head / s_.heads, h = head % s_.heads;
    const std::int64_t from_k = b * s_.length_k * s_.row + h * s_.head_dim;
    copy_rows<T>({in_[0] + (b * s_.length_q + first) * s_.row + h * s_.head_dim, s_.row}, n,
                 s_.head_dim, T(s_.scale), q_);
    std::fill_n(top_, round_up(n, group<T>), -infinity);
    std::fill_n(sum_.data, round_up(n, group<T>) * sum_.step, T(0));
    const std::int64_t keys = s_.is_causal ? std::min(first + n, s_.length_k) : s_.length_k;
    for (std::int64_t j = 0; j < keys; j += tile) {
      const std::int64_t count = std::min(tile, keys - j);
      copy_turned<T>({in_[1] + from_k + j * s_.row, s_.row}, count, s_.head_dim, k_);
      copy_rows<T>({in_[2] + from_k + j * s_.row, s_.row}, count, s_.head_dim, T(1), v_);
      for (std::int64_t i = 0; i < n; i += group<T>) see(i, {s_.is_causal, first + i, j, count});
    }
    finish(y_ + ((b * s_.length_q + first) * s_.heads + h) * s_.head_dim,
           lse_ + head * s_.length_q + first, n, keys > 0);
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr int l = lanes<T>;

  void see(std::int64_t i, const View<T>& view) {
    if (view.visible(group<T> - 1) == 0) return;
    multiply<T, Sees::all>(s_.head_dim, {q_.at(i), q_.step}, {k_.data, k_.step}, view.columns(),
                           scores_);
    T scale[group<T>];
    weigh(i, view, scale);
    const Store store = view.j0 == 0 ? Store::set : Store::scale_and_add;
    const Block<const T> p{scores_.data, scores_.step}, v{v_.data, v_.step};
    if (view.diagonal())
      multiply<T, Sees::up_to_own>(view.common(), p, v, width_, {sum_v_.at(i), width_}, store,
                                   scale);
    else
      multiply<T, Sees::all>(view.common(), p, v, width_, {sum_v_.at(i), width_}, store, scale);
  }

  // Turns scores into exponentials; scale is what the sums so far are to be multiplied by.
  void weigh(std::int64_t i, const View<T>& view, T* scale) {
    T before[l] = {}, base[l] = {};
    for (int r = 0; r < group<T>; ++r) {
      before[r] = top_[i + r];
      const T top = std::max(before[r], largest(scores_.at(r), view.visible(r)));
      top_[i + r] = top;
      base[r] = top == -infinity ? T(0) : top;
    }
    exp(Simd<T>::load(before) - Simd<T>::load(base)).store(before);
    std::copy_n(before, group<T>, scale);
    for (int r = 0; r < group<T>; ++r) {
      const std::int64_t n = view.visible(r);
      Simd<T> sum = Simd<T>::load(sum_.at(i + r)) * scale[r];
      for (std::int64_t c = 0; c < view.columns(); c += l) {
        T* at = scores_.at(r, c);
        const Simd<T> p = zero_from(exp(Simd<T>::load(at) - base[r]), n, c);
        p.store(at);
        sum = sum + p;
      }
      sum.store(sum_.at(i + r));
    }
  }

  static T largest(const T* x, std::int64_t n) {
    Simd<T> top = -infinity;
    for (std::int64_t c = 0; c < n; c += l) {
      const auto place = Simd<T>::of(Eigen::internal::plset<cpu::Packet<T>>(T(c)));
      const Simd<T> some = Simd<T>::load(x + c);
      top.v = Eigen::internal::pmax(
          top.v, c + l <= n ? some.v : select(place < Simd<T>(T(n)), some, Simd<T>(-infinity)).v);
    }
    return Eigen::internal::predux_max(top.v);
  }

  void finish(T* y, T* lse, std::int64_t n, bool any) {
    for (std::int64_t i = 0; i < n; ++i) {
      const T sum = Eigen::internal::predux(Simd<T>::load(sum_.at(i)).v);
      const T scale = sum == 0 ? T(0) : 1 / sum;
      T* to = y + i * s_.heads * s_.head_dim;
      for (std::int64_t c = 0; c < s_.head_dim; c += l)
        store_up_to(any ? Simd<T>::load(sum_v_.at(i, c)) * scale : Simd<T>(T(0)), to + c,
                    s_.head_dim - c);
      sums_[i] = sum;
    }
    for (std::int64_t i = 0; i < n; i += l)
      store_up_to(load_up_to(top_ + i, n - i) + log(load_up_to(sums_ + i, n - i)), lse + i, n - i);
  }

  const FlashAttentionSize& s_;
  const T* in_[3];
  T* y_;
  T* lse_;
  const std::int64_t width_ = round_up(s_.head_dim, l);
  Scratch<T> memory_{chunk * (2 * width_ + l + 2) + 2 * tile * width_ + group<T> * tile};
  Block<T> q_ = memory_.block(chunk, width_);
  Block<T> sum_v_ = memory_.block(chunk, width_);  // of the values, weighed
  Block<T> sum_ = memory_.block(chunk, l);         // of the exponentials, lane by lane
  Block<T> k_ = memory_.block(width_, tile);
  Block<T> v_ = memory_.block(tile, width_);
  Block<T> scores_ = memory_.block(group<T>, tile);
  T* top_ = memory_.take(chunk);
  T* sums_ = memory_.take(chunk);
};

// log Σ exp of each query as it is needed: without keys +∞, so that P is 0 there, and D.
template <class T>
class Differentiate {
 public:
  Differentiate(const FlashAttentionSize& s, std::array<const T*, 3> in, const T* y, const T* lse,
                const T* dy, std::array<T*, 3> out)
      : s_(s), in_(in), y_(y), lse_(lse), dy_(dy), out_(out) {}

  void operator()(std::int64_t head) {
    const std::int64_t b = head / s_.heads, h = head % s_.heads;
    const std::int64_t from_q = b * s_.length_q * s_.row + h * s_.head_dim;
    const std::int64_t from_k = b * s_.length_k * s_.row + h * s_.head_dim;
    const std::int64_t from_y = (b * s_.length_q * s_.heads + h) * s_.head_dim;
    q_in_ = {in_[0] + from_q, s_.row};
    dy_in_ = {dy_ + from_y, s_.heads * s_.head_dim};
    dq_out_ = {out_[0] + from_q, s_.row};
    rows(y_ + from_y, lse_ + head * s_.length_q);
    for (std::int64_t j = 0; j < s_.length_k; j += tile) {
      const std::int64_t n = std::min(tile, s_.length_k - j);
      const Block<const T> k{in_[1] + from_k + j * s_.row, s_.row};
      const Block<const T> v{in_[2] + from_k + j * s_.row, s_.row};
      copy_rows<T>(k, n, s_.head_dim, T(1), k_);
      copy_turned<T>(k, n, s_.head_dim, turned_k_);
      copy_turned<T>(v, n, s_.head_dim, turned_v_);
      std::fill_n(dk_.data, tile * width_, T(0));
      std::fill_n(dv_.data, tile * width_, T(0));
      for (std::int64_t i = s_.is_causal ? j : 0; i < s_.length_q; i += tile) queries(i, j, n);
      write(dk_, n, {out_[1] + from_k + j * s_.row, s_.row});
      write(dv_, n, {out_[2] + from_k + j * s_.row, s_.row});
    }
    for (std::int64_t i = 0; i < s_.length_q && s_.length_k == 0; ++i)
      std::fill_n(dq_out_.at(i), s_.head_dim, T(0));
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr int l = lanes<T>;

  void rows(const T* y, const T* lse) {
    for (std::int64_t i = 0; i < s_.length_q; ++i) {
      Simd<T> sum = T(0);
      for (std::int64_t c = 0; c < s_.head_dim; c += l)
        sum = sum + load_up_to(y + i * dy_in_.step + c, s_.head_dim - c) *
                        load_up_to(dy_in_.at(i, c), s_.head_dim - c);
      d_[i] = Eigen::internal::predux(sum.v);
      top_[i] = lse[i] == -infinity ? infinity : lse[i];
    }
  }

  // What the queries from i on, a tile of them, have to do with the n keys from j on.
  void queries(std::int64_t i, std::int64_t j, std::int64_t n) {
    const std::int64_t count = std::min(tile, s_.length_q - i);
    copy_rows<T>({q_in_.at(i), q_in_.step}, count, s_.head_dim, T(s_.scale), q_);
    copy_rows<T>({dy_in_.at(i), dy_in_.step}, count, s_.head_dim, T(1), dy_tile_);
    for (std::int64_t r = 0; r < count; r += group<T>)
      see(i, r, std::min<std::int64_t>(group<T>, count - r), {s_.is_causal, i + r, j, n});
    const std::int64_t most = round_up(count, group<T>);
    for (std::int64_t c = 0; c < n; c += group<T>) {
      const bool diagonal = s_.is_causal && j + c >= i;
      add_to_keys(diagonal, diagonal ? j + c - i : 0, most, c);
    }
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t c = 0; c < s_.head_dim; c += l) {
        Simd<T> sum = Simd<T>::load(dq_.at(r, c)) * T(s_.scale);
        T* to = dq_out_.at(i + r, c);
        if (j > 0) sum = load_up_to(to, s_.head_dim - c) + sum;
        store_up_to(sum, to, s_.head_dim - c);
      }
  }

  // P, dS and dq of the group of queries at r of the tile; `real` of them are queries.
  void see(std::int64_t i, std::int64_t r, std::int64_t real, const View<T>& view) {
    const std::int64_t columns = view.columns();
    multiply<T, Sees::all>(s_.head_dim, {q_.at(r), width_}, {turned_k_.data, tile}, columns,
                           {p_.at(r), tile});
    multiply<T, Sees::all>(s_.head_dim, {dy_tile_.at(r), width_}, {turned_v_.data, tile}, columns,
                           {ds_.at(r), tile});
    for (int g = 0; g < group<T>; ++g) {
      const std::int64_t n = g < real ? view.visible(g) : 0;
      const T top = g < real ? top_[i + r + g] : T(0);
      const T d = g < real ? d_[i + r + g] : T(0);
      for (std::int64_t c = 0; c < columns; c += l) {
        T* p = p_.at(r + g, c);
        T* ds = ds_.at(r + g, c);
        const Simd<T> weight = zero_from(exp(Simd<T>::load(p) - top), n, c);
        weight.store(p);
        zero_from(weight * (Simd<T>::load(ds) - d), n, c).store(ds);
      }
    }
    const Block<const T> ds{ds_.at(r), tile}, k{k_.data, width_};
    if (view.diagonal())
      multiply<T, Sees::up_to_own>(view.common(), ds, k, width_, {dq_.at(r), width_});
    else
      multiply<T, Sees::all>(view.common(), ds, k, width_, {dq_.at(r), width_});
  }

  // dk and dv of the group of keys at c of the block, from the queries first … last of the tile.
  void add_to_keys(bool diagonal, std::int64_t first, std::int64_t last, std::int64_t c) {
    if (first >= last) return;
    const auto add = [&](const Block<T>& weights, const Block<T>& values, const Block<T>& to) {
      const Block<const T> a{weights.at(first, c), tile}, b{values.at(first), width_};
      if (diagonal)
        multiply<T, Sees::from_own, true>(last - first - group<T> + 1, a, b, width_,
                                          {to.at(c), width_}, Store::add);
      else
        multiply<T, Sees::all, true>(last - first, a, b, width_, {to.at(c), width_}, Store::add);
    };
    add(p_, dy_tile_, dv_);
    add(ds_, q_, dk_);
  }

  void write(const Block<T>& sums, std::int64_t n, const Block<T>& to) {
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t c = 0; c < s_.head_dim; c += l)
        store_up_to(Simd<T>::load(sums.at(i, c)), to.at(i, c), s_.head_dim - c);
  }

  const FlashAttentionSize& s_;
  const std::array<const T*, 3> in_;
  const T* y_;
  const T* lse_;
  const T* dy_;
  const std::array<T*, 3> out_;
  const std::int64_t width_ = round_up(s_.head_dim, l);
  Scratch<T> memory_{2 * round_up(s_.length_q, l) + tile * (8 * width_ + 2 * tile)};
  T* top_ = memory_.take(round_up(s_.length_q, l));
  T* d_ = memory_.take(round_up(s_.length_q, l));
  Block<T> q_ = memory_.block(tile, width_);
  Block<T> dy_tile_ = memory_.block(tile, width_);
  Block<T> dq_ = memory_.block(tile, width_);
  Block<T> k_ = memory_.block(tile, width_);
  Block<T> dk_ = memory_.block(tile, width_);
  Block<T> dv_ = memory_.block(tile, width_);
  Block<T> turned_k_ = memory_.block(width_, tile);
  Block<T> turned_v_ = memory_.block(width_, tile);
  Block<T> p_ = memory_.block(tile, tile);
  Block<T> ds_ = memory_.block(tile, tile);
  Block<const T> q_in_{}, dy_in_{};
  Block<T> dq_out_{};
};

}  // namespace

void cpu::flash_attention(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                          const Tensor& v, Tensor& y, Tensor& lse) {
  visit<float, double>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const auto in = attention_parts<T>(s, q, k, v);
    const std::int64_t chunks = (s.length_q + chunk - 1) / chunk;
    parallel_for(s.batch * s.heads * chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      Attend<T> attend(s, in[0], in[1], in[2], y.data<T>(), lse.data<T>());
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t first = t % chunks * chunk;
        attend(t / chunks, first, std::min(chunk, s.length_q - first));
      }
    });
  });
}

void cpu::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& y, const Tensor& lse,
                                   const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv) {
  visit<float, double>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const auto in = attention_parts<T>(s, q, k, v);
    const auto out = attention_parts<T>(s, dq, dk, dv);
    parallel_for(s.batch * s.heads, 1, [&](std::int64_t begin, std::int64_t end) {
      Differentiate<T> differentiate(s, in, y.data<T>(), lse.data<T>(), dy.data<T>(), out);
      for (std::int64_t head = begin; head < end; ++head) differentiate(head);
    });
  });
}

}  // namespace ebb
