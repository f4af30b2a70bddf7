// The forward of the CPU twin: some queries of a head meet its keys, a tile at a time.
#include "ebb/ops/attention/cpu.h"

namespace ebb {
namespace {

using namespace cpu;
using namespace cpu::attention;

// Some queries of one head, with m, l and o of flash_attention.h as top_, sum_ and sum_v_.
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
      copy_rows<T>(v.from(j), count, s_.head_dim, T(1), v_);
      if (n == 1) {
        score<T>(s_.head_dim, q_.data, k.from(j), count, p_.data);
        see(0, View<T, 1>{s_.is_causal, first, j, count});
        const std::int64_t next = std::min(tile, keys - j - count);
        fetch(k.from(j + count), next);
        fetch(v.from(j + count), next);
        continue;
      }
      copy_turned<T>(k.from(j), count, s_.head_dim, k_);
      for (std::int64_t i = 0; i < n; i += group<T>)
        see(i, View<T>{s_.is_causal, first + i, j, count});
    }
    const auto y = rows_of(s_, head, y_, s_.length_q, s_.heads * s_.head_dim);
    write(y.from(first), lse_ + head * s_.length_q + first, n);
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr int l = lanes<T>;

  // One query waits for memory: rows of a head lie apart, which no processor foresees.
  void fetch(const Block<const T>& rows, std::int64_t n) const {
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t c = 0; c < s_.head_dim; c += 64 / sizeof(T))
        __builtin_prefetch(rows.at(i, c));
  }

  template <int rows>
  void see(std::int64_t i, const View<T, rows>& view) {
    if (view.columns() == 0) return;
    if constexpr (rows > 1) multiply<T, Sees::all>(s_.head_dim, q_.from(i), k_, view.columns(), p_);
    T shrink[group<T>];
    exponentials(i, view, shrink);
    if (s_.dropout.threshold > 0) drop(view);
    view.weigh(p_, v_, sum_v_.from(i), Store::scale_and_add, shrink);
  }

  // Of the scores; and what the sums so far are to be multiplied by.
  template <int rows>
  void exponentials(std::int64_t i, const View<T, rows>& view, T* shrink) {
    T was[l] = {}, base[l] = {};
    for (int r = 0; r < rows; ++r) {
      was[r] = top_[i + r];
      top_[i + r] = std::max(was[r], largest(p_.at(r), view.visible(r)));
      base[r] = top_[i + r] == -infinity ? T(0) : top_[i + r];
    }
    exp(Simd<T>::load(was) - Simd<T>::load(base)).store(was);
    std::copy_n(was, rows, shrink);
    for (int r = 0; r < rows; ++r) {
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

  template <int rows>
  void drop(const View<T, rows>& view) {
    Kept<T>(s_, head_)(view.i, view.j, view.columns(), kept_);
    for (int r = 0; r < rows; ++r)
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

}  // namespace ebb
