// Internal: not in <ebb/ebb.h>, not installed.
// What both directions of flash_attention's CPU twin share: a thread's task is a span of positions
// of one head, which meets the others in tiles; a group of rows of such a tile, as many as a
// product has in registers, sees some columns of it.
#pragma once
#include <bit>
#include <limits>
#include <utility>

#include "ebb/core/parallel.h"
#include "ebb/ops/attention/blocks.h"
#include "ebb/ops/attention/flash_attention.h"

namespace ebb::cpu::attention {

namespace simd = Eigen::internal;

inline constexpr const char* op = "flash_attention";

inline constexpr std::int64_t tile = 64;  // keys of a block, and backward queries too
inline constexpr std::int64_t span =
    256;  // positions of a task, which share the copies of the others

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

// How a group of queries, or one, the first of them i, sees the n keys from j on.
template <class T, int rows = group<T>>
struct View {
  bool is_causal;
  std::int64_t i, j, n;

  std::int64_t visible(int r) const {  // to the r-th of them
    return is_causal ? std::clamp<std::int64_t>(i + r + 1 - j, 0, n) : n;
  }
  std::int64_t columns() const { return round_up(visible(rows - 1), lanes<T>); }

  // y = (scale · y) + weights · values, over what each query sees.
  void weigh(const Block<T>& weights, const Block<T>& values, const Block<T>& y,
             Store store = Store::set, const T* scale = nullptr) const {
    if (visible(0) < n)
      multiply<T, Sees::up_to_own, false, rows>(visible(0), weights, values, values.step, y, store,
                                                scale);
    else
      multiply<T, Sees::all, false, rows>(n, weights, values, values.step, y, store, scale);
  }
};

// S of one query, by the rows of n keys: turning them takes longer. The sums are not in the order
// of `multiply`. Both directions use it for the same queries, those that a span has alone, so that
// P = exp(S − lse) is of the same S, however large.
template <class T>
void score(std::int64_t head_dim, const T* q, const Block<const T>& keys, std::int64_t n, T* to) {
  constexpr int l = lanes<T>;
  for (std::int64_t j = 0; j < n; j += l) {
    simd::PacketBlock<cpu::Packet<T>, l> sums;
    for (int r = 0; r < l; ++r) {
      Simd<T> sum = T(0);
      for (std::int64_t c = 0; c < head_dim && j + r < n; c += l)
        sum = sum + Simd<T>::load(q + c) * load_up_to(keys.at(j + r, c), head_dim - c);
      sums.packet[r] = sum.v;
    }
    simd::ptranspose(sums);
    Simd<T> all = T(0);
    for (const auto& part : sums.packet) all = all + Simd<T>::of(part);
    all.store(to + j);
  }
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

inline std::int64_t spans(std::int64_t length) { return (length + span - 1) / span; }

// How many of `tasks` are worth a thread.
inline std::int64_t grain(const FlashAttentionSize& s, std::int64_t tasks) {
  constexpr std::int64_t worth_a_thread = 1 << 17;  // multiplications
  const double work = static_cast<double>(s.batch * s.heads * s.head_dim) *
                      static_cast<double>(s.length_q) * static_cast<double>(s.length_k + 1);
  return static_cast<std::int64_t>(worth_a_thread * static_cast<double>(tasks) / (work + 1)) + 1;
}

}  // namespace ebb::cpu::attention
