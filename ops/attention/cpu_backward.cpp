// The backward of the CPU twin: the weights are made again tile by tile, and what they give to dq,
// dk and dv is added up.
#include "ebb/ops/attention/cpu.h"

namespace ebb {
namespace {

using namespace cpu;
using namespace cpu::attention;

// The gradients of one head; or dq of some queries, or dk and dv of some keys, for more threads
// than there are heads. The sums are the same, in the same order.
template <class T>
class Differentiate {
 public:
  Differentiate(const FlashAttentionSize& s, std::array<const T*, 3> in, const T* y, const T* lse,
                const T* dy, std::array<T*, 3> out)
      : s_(s), in_(in), y_(y), lse_(lse), dy_(dy), out_(out) {}

  void all(std::int64_t head) { run({head, 0, s_.length_q, 0, s_.length_k, true, true}); }
  void queries(std::int64_t head, std::int64_t first) {
    const std::int64_t end = std::min(first + span, s_.length_q);
    const std::int64_t keys = s_.is_causal ? std::min(end, s_.length_k) : s_.length_k;
    if (first < end) run({head, first, end, 0, keys, true, false});
  }
  void keys(std::int64_t head, std::int64_t first) {
    const std::int64_t end = std::min(first + span, s_.length_k);
    if (first < end) run({head, s_.is_causal ? first : 0, s_.length_q, first, end, false, true});
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr int l = lanes<T>;

  struct Task {
    std::int64_t head, first_q, end_q, first_k, end_k;
    bool of_queries, of_keys;
  };

  void run(const Task& t) {
    t_ = t;
    prepare();
    const auto of_keys = [&](auto* x) { return rows_of(s_, t_.head, x, s_.length_k, s_.row); };
    const auto k = of_keys(in_[1]), v = of_keys(in_[2]);
    const auto dk = of_keys(out_[1]), dv = of_keys(out_[2]);
    for (std::int64_t j = t_.first_k; j < t_.end_k; j += tile) {
      const std::int64_t n = std::min(tile, t_.end_k - j);
      copy_rows<T>(k.from(j), n, s_.head_dim, T(1), k_);
      copy_turned<T>(k.from(j), n, s_.head_dim, turned_k_);
      copy_turned<T>(v.from(j), n, s_.head_dim, turned_v_);
      std::fill_n(dk_.data, round_up(n, group<T>) * width_, T(0));
      std::fill_n(dv_.data, round_up(n, group<T>) * width_, T(0));
      const std::int64_t first = s_.is_causal ? std::max(j, t_.first_q) : t_.first_q;
      for (std::int64_t i = first; i < t_.end_q; i += tile) block(i, j, n);
      if (!t_.of_keys) continue;
      put_rows(dk_, n, T(1), dk.from(j), true);
      put_rows(dv_, n, T(s_.dropout.scale), dv.from(j), true);
    }
  }

  // D of each query, and its lse: +∞ where no key is seen, so that P is 0 there.
  void prepare() {
    const std::int64_t row = s_.heads * s_.head_dim;
    q_in_ = rows_of(s_, t_.head, in_[0], s_.length_q, s_.row);
    dy_in_ = rows_of(s_, t_.head, dy_, s_.length_q, row);
    dq_out_ = rows_of(s_, t_.head, out_[0], s_.length_q, s_.row);
    const Block<const T> y = rows_of(s_, t_.head, y_, s_.length_q, row);
    const T* lse = lse_ + t_.head * s_.length_q;
    for (std::int64_t i = t_.first_q; i < t_.end_q; ++i) {
      Simd<T> sum = T(0);
      for (std::int64_t c = 0; c < s_.head_dim; c += l)
        sum = sum + load_up_to(y.at(i, c), s_.head_dim - c) *
                        load_up_to(dy_in_.at(i, c), s_.head_dim - c);
      d_[i] = simd::predux(sum.v);
      top_[i] = lse[i] == -infinity ? infinity : lse[i];
      if (t_.of_queries && s_.length_k == 0) std::fill_n(dq_out_.at(i), s_.head_dim, T(0));
    }
  }

  // What the queries from i on, a tile of them, have to do with the n keys from j on.
  void block(std::int64_t i, std::int64_t j, std::int64_t n) {
    const std::int64_t count = std::min(tile, t_.end_q - i);
    copy_rows<T>(q_in_.from(i), count, s_.head_dim, T(s_.scale), q_);
    copy_rows<T>(dy_in_.from(i), count, s_.head_dim, T(1), dy_rows_);
    for (std::int64_t r = 0; r < count; r += group<T>) {
      const View<T> view{s_.is_causal, i + r, j, n};
      scores(r, count, view);
      if (t_.of_queries) view.weigh(ds_.from(r), k_, dq_.from(r));
    }
    if (t_.of_queries) put_rows(dq_, count, T(s_.scale), dq_out_.from(i), j == 0);
    for (std::int64_t c = 0; c < n && t_.of_keys; c += group<T>) {
      add_to_keys(p_, dy_rows_, dv_, i, j, c, count);
      add_to_keys(ds_, q_, dk_, i, j, c, count);
    }
  }

  // P and dS of the group of queries at r of the tile's `count`.
  void scores(std::int64_t r, std::int64_t count, const View<T>& view) {
    const std::int64_t columns = view.columns();
    const bool alone = count == 1 && view.i % span == 0;
    if (alone)
      score<T>(s_.head_dim, q_.at(r), k_, view.n, p_.at(r));
    else
      multiply<T, Sees::all>(s_.head_dim, q_.from(r), turned_k_, columns, p_.from(r));
    multiply<T, Sees::all>(s_.head_dim, dy_rows_.from(r), turned_v_, columns, ds_.from(r));
    const bool drops = s_.dropout.threshold > 0;
    const T scale = T(s_.dropout.scale);
    if (drops) Kept<T>(s_, t_.head)(view.i, view.j, columns, kept_);
    for (int g = 0; g < group<T>; ++g) {
      T* const p = p_.at(r + g);
      T* const ds = ds_.at(r + g);
      if (r + g >= count) {
        std::fill_n(p, columns, T(0));
        std::fill_n(ds, columns, T(0));
        continue;
      }
      const std::int64_t n = view.visible(g);
      const Simd<T> top = top_[view.i + g], d = d_[view.i + g];
      for (std::int64_t c = 0; c < columns; c += l) {
        const Mask<T> seen = before<T>(n, c);
        const Simd<T> weight = exp(Simd<T>::load(p + c) - top);
        Simd<T> kept = weight, slope = Simd<T>::load(ds + c);
        if (drops) {
          const Mask<T> dropped = Simd<T>::load(kept_.at(g, c)) <= T(0);
          kept = zero_where(dropped, weight);
          slope = zero_where(dropped, slope * scale);
        }
        select(seen, kept, T(0)).store(p + c);
        select(seen, weight * (slope - d), T(0)).store(ds + c);
      }
    }
  }

  // The group of keys at c of the block from j on gets what the queries from i on, up to row `end`
  // of the tile, give it: the first that sees it is the group's own. Rows beyond the end, up to a
  // whole group, are 0.
  void add_to_keys(const Block<T>& weights, const Block<T>& values, const Block<T>& sums,
                   std::int64_t i, std::int64_t j, std::int64_t c, std::int64_t end) {
    const bool diagonal = s_.is_causal && j + c >= i;
    const std::int64_t first = diagonal ? j + c - i : 0;
    if (first >= end) return;
    const Block<T> a = weights.from(first, c), b = values.from(first), to = sums.from(c);
    if (diagonal)
      multiply<T, Sees::from_own, true>(round_up(end - first, group<T>) - group<T> + 1, a, b,
                                        width_, to, Store::add);
    else
      multiply<T, Sees::all, true>(end - first, a, b, width_, to, Store::add);
  }

  // to = scale · from, or to += that.
  void put_rows(const Block<T>& from, std::int64_t n, T scale, const Block<T>& to, bool set) {
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t c = 0; c < s_.head_dim; c += l) {
        const Simd<T> x = Simd<T>::load(from.at(i, c)) * scale;
        store_up_to(set ? x : load_up_to<T>(to.at(i, c), s_.head_dim - c) + x, to.at(i, c),
                    s_.head_dim - c);
      }
  }

  const FlashAttentionSize& s_;
  const std::array<const T*, 3> in_;
  const T* const y_;
  const T* const lse_;
  const T* const dy_;
  const std::array<T*, 3> out_;
  const std::int64_t width_ = round_up(s_.head_dim, l);
  Scratch<T> memory_{2 * round_up(s_.length_q, l) + tile * (8 * width_ + 2 * tile + group<T>)};
  T* const top_ = memory_.take(round_up(s_.length_q, l));
  T* const d_ = memory_.take(round_up(s_.length_q, l));
  const Block<T> q_ = memory_.block(tile, width_);
  const Block<T> dy_rows_ = memory_.block(tile, width_);
  const Block<T> dq_ = memory_.block(tile, width_);
  const Block<T> k_ = memory_.block(tile, width_);
  const Block<T> dk_ = memory_.block(tile, width_);
  const Block<T> dv_ = memory_.block(tile, width_);
  const Block<T> turned_k_ = memory_.block(width_, tile);
  const Block<T> turned_v_ = memory_.block(width_, tile);
  const Block<T> p_ = memory_.block(tile, tile);
  const Block<T> ds_ = memory_.block(tile, tile);
  const Block<T> kept_ = memory_.block(group<T>, tile);
  Task t_{};
  Block<const T> q_in_{}, dy_in_{};
  Block<T> dq_out_{};
};

}  // namespace

void cpu::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& y, const Tensor& lse,
                                   const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv) {
  require_on_host(op, s.dropout.stream);
  if (s.length_q + s.length_k == 0) return;
  const std::int64_t heads = s.batch * s.heads;
  const std::int64_t parts = std::max(spans(s.length_q), spans(s.length_k));
  const bool apart = heads < omp_get_max_threads() && parts > 1;
  const std::int64_t tasks = apart ? 2 * heads * parts : heads;
  visit<float, double>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(tasks, grain(s, tasks), [&](std::int64_t begin, std::int64_t end) {
      Differentiate<T> differentiate(s, attention_parts<T>(s, q, k, v), y.data<T>(), lse.data<T>(),
                                     dy.data<T>(), attention_parts<T>(s, dq, dk, dv));
      for (std::int64_t t = begin; t < end; ++t) {
        if (!apart)
          differentiate.all(t);
        else if (t % 2)
          differentiate.keys(t / 2 / parts, t / 2 % parts * span);
        else
          differentiate.queries(t / 2 / parts, t / 2 % parts * span);
      }
    });
  });
}

}  // namespace ebb
