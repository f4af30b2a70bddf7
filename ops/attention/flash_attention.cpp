#include "ebb/ops/attention/flash_attention.h"

#include <bit>
#include <limits>
#include <utility>

#include "ebb/core/parallel.h"
#include "ebb/ops/attention/blocks.h"

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

namespace {

using cpu::Array;
using cpu::Block;
using cpu::copy_rows;
using cpu::copy_turned;
using cpu::group;
using cpu::lanes;
using cpu::load_up_to;
using cpu::Mask;
using cpu::multiply;
using cpu::round_up;
using cpu::Sees;
using cpu::Simd;
using cpu::Store;
using cpu::store_up_to;
namespace simd = Eigen::internal;

constexpr std::int64_t tile = 64;   // keys of a block, and backward queries too
constexpr std::int64_t span = 256;  // positions of a task, which share the copies of the others

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

// What belongs to one head of one sequence, of a tensor whose positions lie `row` apart.
template <class T>
Block<T> rows_of(const FlashAttentionSize& s, std::int64_t head, T* x, std::int64_t length,
                 std::int64_t row) {
  return {x + head / s.heads * length * row + head % s.heads * s.head_dim, row};
}

// How a group of queries, the first of them i, sees the n keys from j on.
template <class T>
struct View {
  bool is_causal;
  std::int64_t i, j, n;

  std::int64_t visible(int r) const {  // to the r-th of them
    return is_causal ? std::clamp<std::int64_t>(i + r + 1 - j, 0, n) : n;
  }
  std::int64_t columns() const { return round_up(visible(group<T> - 1), lanes<T>); }

  // y = (scale · y) + weights · values, over what each query sees.
  void weigh(const Block<T>& weights, const Block<T>& values, const Block<T>& y,
             Store store = Store::set, const T* scale = nullptr) const {
    if (visible(0) < n)
      multiply<T, Sees::up_to_own>(visible(0), weights, values, values.step, y, store, scale);
    else
      multiply<T, Sees::all>(n, weights, values, values.step, y, store, scale);
  }
};

// The lanes c … of a row that lie before n.
template <class T>
Mask<T> before(std::int64_t n, std::int64_t c) {
  return Simd<T>::of(simd::plset<cpu::Packet<T>>(T(c))) < Simd<T>(T(n));
}

template <class T>
T largest(const T* x, std::int64_t n) {
  Simd<T> top = -std::numeric_limits<T>::infinity();
  for (std::int64_t c = 0; c < n; c += lanes<T>)
    top.v = simd::pmax(top.v, select(before<T>(n, c), Simd<T>::load(x + c), top).v);
  return simd::predux_max(top.v);
}

// Which weights of one head are kept.
template <class T>
class Kept {
 public:
  Kept(const FlashAttentionSize& s, std::int64_t head)
      : s_(s), across_((s.length_k + 15) / 16), first_(head * ((s.length_q + 15) / 16) * across_) {}

  // 1 for each weight of a group of queries, the first of them i, and the n keys from j on that is
  // kept, 0 for the others.
  void operator()(std::int64_t i, std::int64_t j, std::int64_t n, const Block<T>& to) const {
    static_assert(group<T> % 2 == 0);
    for (std::int64_t c = 0; c < n; c += 16)
      for (int r = 0; r < group<T>; r += 2)
        for (int pair = 0; pair < 4; ++pair)
          draw(i + r, j + c + 2 * pair, to.from(r, c + 2 * pair));
  }

 private:
  // Two neighbouring queries and two keys, and the two keys eight further on.
  void draw(std::int64_t i, std::int64_t j, const Block<T>& to) const {
    const std::int64_t block =
        16 * (first_ + i / 16 * across_ + j / 16) + i % 8 / 2 * 4 + j % 8 / 2;
    const Stream& stream = s_.dropout.stream;
    const Philox words = philox(stream.seed, static_cast<std::uint64_t>(block), stream.index);
    for (int w = 0; w < 4; ++w)
      for (int far = 0; far < 2; ++far) {
        const int turn = 16 * static_cast<int>(i / 8 % 2) + 8 * far;
        *to.at(w / 2, w % 2 + 8 * far) = std::rotr(words.v[w], turn) >= s_.dropout.threshold;
      }
  }

  const FlashAttentionSize& s_;
  std::int64_t across_, first_;  // tiles of a row, and before the head
};

// Some queries of one head. Of the keys so far, the largest score, the sum of the exponentials and
// of the values that they weigh are kept, and scaled down when a larger score comes.
template <class T>
class Attend {
 public:
  Attend(const FlashAttentionSize& s, std::array<const T*, 3> in, T* y, T* lse)
      : s_(s), in_(in), y_(y), lse_(lse) {}

  void operator()(std::int64_t head, std::int64_t first, std::int64_t n) {
    head_ = head;
    const auto q = rows_of(s_, head, in_[0], s_.length_q, s_.row);
    const auto k = rows_of(s_, head, in_[1], s_.length_k, s_.row);
    const auto v = rows_of(s_, head, in_[2], s_.length_k, s_.row);
    copy_rows<T>(q.from(first), n, s_.head_dim, T(s_.scale), q_);
    std::fill_n(top_, round_up(n, group<T>), -infinity);
    std::fill_n(sum_.data, round_up(n, group<T>) * l, T(0));
    std::fill_n(sum_v_.data, round_up(n, group<T>) * width_, T(0));
    const std::int64_t keys = s_.is_causal ? std::min(first + n, s_.length_k) : s_.length_k;
    for (std::int64_t j = 0; j < keys; j += tile) {
      const std::int64_t count = std::min(tile, keys - j);
      copy_turned<T>(k.from(j), count, s_.head_dim, k_);
      copy_rows<T>(v.from(j), count, s_.head_dim, T(1), v_);
      for (std::int64_t i = 0; i < n; i += group<T>) see(i, {s_.is_causal, first + i, j, count});
    }
    const auto y = rows_of(s_, head, y_, s_.length_q, s_.heads * s_.head_dim);
    write(y.from(first), lse_ + head * s_.length_q + first, n);
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr int l = lanes<T>;

  void see(std::int64_t i, const View<T>& view) {
    if (view.columns() == 0) return;
    multiply<T, Sees::all>(s_.head_dim, q_.from(i), k_, view.columns(), p_);
    T shrink[group<T>];
    exponentials(i, view, shrink);
    if (s_.dropout.threshold > 0) drop(view);
    view.weigh(p_, v_, sum_v_.from(i), Store::scale_and_add, shrink);
  }

  // Of the scores; and what the sums so far are to be multiplied by.
  void exponentials(std::int64_t i, const View<T>& view, T* shrink) {
    T was[l] = {}, base[l] = {};
    for (int r = 0; r < group<T>; ++r) {
      was[r] = top_[i + r];
      top_[i + r] = std::max(was[r], largest(p_.at(r), view.visible(r)));
      base[r] = top_[i + r] == -infinity ? T(0) : top_[i + r];
    }
    exp(Simd<T>::load(was) - Simd<T>::load(base)).store(was);
    std::copy_n(was, group<T>, shrink);
    for (int r = 0; r < group<T>; ++r) {
      Simd<T> sum = Simd<T>::load(sum_.at(i + r)) * shrink[r];
      for (std::int64_t c = 0; c < view.columns(); c += l) {
        const Simd<T> e = exp(Simd<T>::load(p_.at(r, c)) - base[r]);
        const Simd<T> p = select(before<T>(view.visible(r), c), e, T(0));
        p.store(p_.at(r, c));
        sum = sum + p;
      }
      sum.store(sum_.at(i + r));
    }
  }

  void drop(const View<T>& view) {
    Kept<T>(s_, head_)(view.i, view.j, view.columns(), kept_);
    for (int r = 0; r < group<T>; ++r)
      for (std::int64_t c = 0; c < view.columns(); c += l) {
        const Mask<T> dropped = Simd<T>::load(kept_.at(r, c)) <= T(0);
        zero_where(dropped, Simd<T>::load(p_.at(r, c))).store(p_.at(r, c));
      }
  }

  void write(const Block<T>& y, T* lse, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
      const T sum = simd::predux(Simd<T>::load(sum_.at(i)).v);
      const T scale = sum == 0 ? T(0) : T(s_.dropout.scale) / sum;
      for (std::int64_t c = 0; c < s_.head_dim; c += l)
        store_up_to(Simd<T>::load(sum_v_.at(i, c)) * scale, y.at(i, c), s_.head_dim - c);
      sums_[i] = sum;
    }
    for (std::int64_t i = 0; i < n; i += l)
      store_up_to(Simd<T>::load(top_ + i) + log(Simd<T>::load(sums_ + i)), lse + i, n - i);
  }

  const FlashAttentionSize& s_;
  const std::array<const T*, 3> in_;
  T* const y_;
  T* const lse_;
  const std::int64_t width_ = round_up(s_.head_dim, l);
  Scratch<T> memory_{span * (2 * width_ + l + 2) + tile * (2 * width_ + 2 * group<T>)};
  const Block<T> q_ = memory_.block(span, width_);
  const Block<T> sum_v_ = memory_.block(span, width_);
  const Block<T> sum_ = memory_.block(span, l);  // lane by lane
  const Block<T> k_ = memory_.block(width_, tile);
  const Block<T> v_ = memory_.block(tile, width_);
  const Block<T> p_ = memory_.block(group<T>, tile);
  const Block<T> kept_ = memory_.block(group<T>, tile);
  T* const top_ = memory_.take(span);
  T* const sums_ = memory_.take(span);
  std::int64_t head_ = 0;
};

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
      std::fill_n(dk_.data, tile * width_, T(0));
      std::fill_n(dv_.data, tile * width_, T(0));
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
      add_to_keys(p_, dy_rows_, dv_, i, j, c, round_up(count, group<T>));
      add_to_keys(ds_, q_, dk_, i, j, c, round_up(count, group<T>));
    }
  }

  // P and dS of the group of queries at r of the tile's `count`.
  void scores(std::int64_t r, std::int64_t count, const View<T>& view) {
    const std::int64_t columns = view.columns();
    multiply<T, Sees::all>(s_.head_dim, q_.from(r), turned_k_, columns, p_.from(r));
    multiply<T, Sees::all>(s_.head_dim, dy_rows_.from(r), turned_v_, columns, ds_.from(r));
    const bool drops = s_.dropout.threshold > 0;
    const T scale = T(s_.dropout.scale);
    if (drops) Kept<T>(s_, t_.head)(view.i, view.j, columns, kept_);
    for (int g = 0; g < group<T>; ++g) {
      const bool real = r + g < count;
      const std::int64_t n = real ? view.visible(g) : 0;
      const Simd<T> top = real ? top_[view.i + g] : T(0), d = real ? d_[view.i + g] : T(0);
      T* const p = p_.at(r + g);
      T* const ds = ds_.at(r + g);
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
  // of the tile, give it: the first that sees it is the group's own.
  void add_to_keys(const Block<T>& weights, const Block<T>& values, const Block<T>& sums,
                   std::int64_t i, std::int64_t j, std::int64_t c, std::int64_t end) {
    const bool diagonal = s_.is_causal && j + c >= i;
    const std::int64_t first = diagonal ? j + c - i : 0;
    if (first >= end) return;
    const Block<T> a = weights.from(first, c), b = values.from(first), to = sums.from(c);
    if (diagonal)
      multiply<T, Sees::from_own, true>(end - first - group<T> + 1, a, b, width_, to, Store::add);
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

std::int64_t spans(std::int64_t length) { return (length + span - 1) / span; }

// How many of `tasks` are worth a thread.
std::int64_t grain(const FlashAttentionSize& s, std::int64_t tasks) {
  constexpr std::int64_t worth_a_thread = 1 << 17;  // multiplications
  const double work = static_cast<double>(s.batch * s.heads * s.head_dim) *
                      static_cast<double>(s.length_q) * static_cast<double>(s.length_k + 1);
  return static_cast<std::int64_t>(worth_a_thread * static_cast<double>(tasks) / (work + 1)) + 1;
}

}  // namespace

void cpu::flash_attention(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                          const Tensor& v, Tensor& y, Tensor& lse) {
  const std::int64_t parts = spans(s.length_q), tasks = s.batch * s.heads * parts;
  require_on_host(op, s.dropout.stream);
  visit<float, double>(q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(tasks, grain(s, tasks), [&](std::int64_t begin, std::int64_t end) {
      Attend<T> attend(s, attention_parts<T>(s, q, k, v), y.data<T>(), lse.data<T>());
      for (std::int64_t t = begin; t < end; ++t) {
        // Long causal rows and short ones by turns: each thread gets as much work.
        const std::int64_t p = t % parts, part = p % 2 ? parts - 1 - p / 2 : p / 2;
        attend(t / parts, part * span, std::min(span, s.length_q - part * span));
      }
    });
  });
}

void cpu::flash_attention_backward(const FlashAttentionSize& s, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& y, const Tensor& lse,
                                   const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv) {
  require_on_host(op, s.dropout.stream);
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
